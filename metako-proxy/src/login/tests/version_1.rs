//! Certificates of X.509 version 1, which the library that makes the others does not make.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair, SigningKey as _,
    date_time_ymd,
};
use rustls::pki_types::CertificateDer;

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// An authority of version 3.
pub(in crate::login) fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// One of version 1, by whoever is said to be an authority, for the years 2020 to 2049: one of version 3 without what is newer, signed once more.
pub(in crate::login) fn certificate(
    authority: &Issuer<'_, KeyPair>,
    name: &str,
    key: &KeyPair,
) -> CertificateDer<'static> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2050, 1, 1));
    let newer = params.signed_by(key, authority).unwrap();
    let whole = parts(newer.der())[0].1;
    let [(_, signed, _), (_, _, algorithm), _] = parts(whole)[..] else { panic!("three parts") };
    let kept: Vec<u8> = parts(signed)
        .iter()
        .filter(|(tag, ..)| ![VERSION, EXTENSIONS].contains(tag))
        .flat_map(|(.., all)| all.to_vec())
        .collect();
    let signed = element(SEQUENCE, &kept);
    let mut signature = vec![0];
    signature.extend(authority.key().sign(&signed).unwrap());
    let whole = [&signed[..], algorithm, &element(BIT_STRING, &signature)].concat();
    CertificateDer::from(element(SEQUENCE, &whole))
}

/// The elements of DER: tag, content, and all of it.
fn parts(der: &[u8]) -> Vec<(u8, &[u8], &[u8])> {
    let (mut rest, mut found) = (der, Vec::new());
    while let [tag, first, ..] = *rest {
        let (header, length) = match first {
            short @ ..0x80 => (2, usize::from(short)),
            long => {
                let bytes = usize::from(long & 0x7f);
                let length = rest[2..2 + bytes].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                (2 + bytes, length)
            }
        };
        let (all, behind) = rest.split_at(header + length);
        found.push((tag, &all[header..], all));
        rest = behind;
    }
    found
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let header: &[u8] = match length {
        [0, short @ ..0x80] => &[tag, short],
        [0, one] => &[tag, 0x81, one],
        [high, low] => &[tag, 0x82, high, low],
    };
    [header, content].concat()
}
