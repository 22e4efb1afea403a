//! The channel binding `tls-server-end-point` of a certificate (RFC 5929, section 4.1).

use aws_lc_rs::digest::{Algorithm, SHA224, SHA256, SHA384, SHA512, digest};

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// `1.2.840.113549.1.1`, the signatures of RSA.
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
/// `1.2.840.10045.4`, the signatures of ECDSA.
const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
/// `2.16.840.1.101.3.4.2`, the hashes of the SHA-2 family.
const SHA2: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];

/// The hash of a certificate by which both sides know that they talk over the same TLS connection: that of its signature,
/// with SHA-256 in place of MD5 and SHA-1. `None` for signatures without a hash of their own, such as Ed25519: for those
/// no binding is defined.
pub fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (body, _) = element(certificate, SEQUENCE)?;
    let (_, after) = element(body, SEQUENCE)?;
    let (algorithm, _) = element(after, SEQUENCE)?;
    Some(digest(hash_of_signature(algorithm)?, certificate).as_ref().to_vec())
}

fn hash_of_signature(algorithm: &[u8]) -> Option<&'static Algorithm> {
    let (name, parameters) = element(algorithm, OBJECT_IDENTIFIER)?;
    if let Some(kind) = name.strip_prefix(RSA) {
        return match kind {
            // MD5 and SHA-1.
            [4 | 5 | 11] => Some(&SHA256),
            [12] => Some(&SHA384),
            [13] => Some(&SHA512),
            [14] => Some(&SHA224),
            [10] => hash_of_pss(parameters),
            _ => None,
        };
    }
    match name.strip_prefix(ECDSA)? {
        // SHA-1.
        [1] | [3, 2] => Some(&SHA256),
        [3, 1] => Some(&SHA224),
        [3, 3] => Some(&SHA384),
        [3, 4] => Some(&SHA512),
        _ => None,
    }
}

/// RSASSA-PSS names its hash in its parameters; SHA-1 if it does not.
fn hash_of_pss(parameters: &[u8]) -> Option<&'static Algorithm> {
    let (parameters, _) = element(parameters, SEQUENCE)?;
    let Some((hash, _)) = element(parameters, 0xa0) else { return Some(&SHA256) };
    let (hash, _) = element(hash, SEQUENCE)?;
    let (name, _) = element(hash, OBJECT_IDENTIFIER)?;
    match name.strip_prefix(SHA2) {
        Some([1]) | None => Some(&SHA256),
        Some([2]) => Some(&SHA384),
        Some([3]) => Some(&SHA512),
        Some([4]) => Some(&SHA224),
        Some(_) => None,
    }
}

/// The content of the DER element of that kind at the start of `input`, and what follows it.
fn element(input: &[u8], kind: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = input.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        short @ 0..=0x7f => (usize::from(*short), rest),
        // More than four bytes of length are no certificate's, none at all is BER.
        long @ 0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    if *first != kind {
        return None;
    }
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};

    fn signed_with(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::new(["db".to_owned()]).unwrap().self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        for (algorithm, hash) in
            [(&rcgen::PKCS_ECDSA_P256_SHA256, &SHA256), (&rcgen::PKCS_ECDSA_P384_SHA384, &SHA384)]
        {
            let certificate = signed_with(algorithm);
            assert_eq!(
                tls_server_end_point(&certificate).as_deref(),
                Some(digest(hash, &certificate).as_ref())
            );
        }
        assert_eq!(tls_server_end_point(&signed_with(&rcgen::PKCS_ED25519)), None);
    }

    #[test]
    fn each_signature_has_its_hash() {
        let der =
            |kind: u8, content: &[u8]| [&[kind, u8::try_from(content.len()).unwrap()], content].concat();
        let name = |family: &[u8], kind: &[u8]| der(OBJECT_IDENTIFIER, &[family, kind].concat());
        let rsa = |kind: u8| hash_of_signature(&name(RSA, &[kind]));
        assert_eq!([4, 5, 11].map(rsa), [Some(&SHA256); 3]);
        assert_eq!([12, 13, 14, 1].map(rsa), [Some(&SHA384), Some(&SHA512), Some(&SHA224), None]);
        assert_eq!(hash_of_signature(&name(ECDSA, &[1])), Some(&SHA256));
        let ecdsa = |kind: u8| hash_of_signature(&name(ECDSA, &[3, kind]));
        assert_eq!([1, 2, 3, 4].map(ecdsa), [&SHA224, &SHA256, &SHA384, &SHA512].map(Some));
        let pss = |hash: &[u8]| {
            let hash = der(0xa0, &der(SEQUENCE, hash));
            hash_of_signature(&[name(RSA, &[10]), der(SEQUENCE, &hash)].concat())
        };
        let sha2 = |kind: u8| pss(&name(SHA2, &[kind]));
        let expected = [Some(&SHA256), Some(&SHA384), Some(&SHA512), Some(&SHA224), None];
        assert_eq!([1, 2, 3, 4, 9].map(sha2), expected);
        assert_eq!(pss(&name(&[0x2b, 0x0e, 0x03, 0x02, 0x1a], &[])), Some(&SHA256));
        let bare = [name(RSA, &[10]), der(SEQUENCE, &[])].concat();
        assert_eq!(hash_of_signature(&bare), Some(&SHA256));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..60), cut in 0usize..400, at in 0usize..400, byte: u8,
        ) {
            let _ = tls_server_end_point(&bytes);
            let mut certificate = signed_with(&rcgen::PKCS_ECDSA_P256_SHA256);
            let at = at % certificate.len();
            certificate[at] = byte;
            certificate.truncate(certificate.len() - cut % certificate.len());
            let _ = tls_server_end_point(&certificate);
        }
    }
}
