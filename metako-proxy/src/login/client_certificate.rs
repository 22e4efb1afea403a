//! Judging the certificates that clients show: by webpki, and those of X.509 version 1, which webpki does not read, here.
//!
//! PostgreSQL takes certificates of version 1, and older instructions produce them. They say of nobody that he is an
//! authority, so one is taken only if an authority of `security.client_ca_file` signed it itself.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, SignatureScheme,
};
use webpki::RawPublicKeyEntity;
use x509_parser::nom::Parser as _;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509CertificateParser, X509Version};

use crate::tls_files::Authorities;

/// Judges what clients show.
#[derive(Debug)]
pub(super) struct Judge {
    webpki: Arc<dyn ClientCertVerifier>,
    authorities: Vec<Authority>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Who may sign certificates.
#[derive(Debug)]
struct Authority {
    /// Its name and its public key, in DER.
    name: Box<[u8]>,
    key: SubjectPublicKeyInfoDer<'static>,
}

impl Judge {
    /// One that knows the authorities that `webpki` goes by. Those whose certificates are read less easily than it reads them
    /// do not count for version 1, which the log says.
    pub(super) fn new(
        webpki: Arc<dyn ClientCertVerifier>,
        known: &Authorities,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        // Who may sign for some names only signs for none here: what a certificate of version 1 is for is in no place that those
        // rules speak of.
        let unbound = known
            .certificates
            .iter()
            .zip(&known.roots.roots)
            .filter(|(_, root)| root.name_constraints.is_none());
        let authorities = unbound.filter_map(|(certificate, _)| Authority::of(certificate)).collect();
        Self { webpki, authorities, algorithms }
    }

    /// Whether one of the authorities signed this certificate of version 1, and for this time.
    fn is_signed(&self, certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), CertificateError> {
        let validity = certificate.validity();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < validity.not_before.timestamp() {
            return Err(CertificateError::NotValidYet);
        }
        if now > validity.not_after.timestamp() {
            return Err(CertificateError::Expired);
        }
        // RFC 5280, section 4.1.1.2: what stands inside the signature and outside is the same.
        if certificate.signature_algorithm != certificate.tbs_certificate.signature {
            return Err(CertificateError::BadSignature);
        }
        let by = certificate.signature_algorithm.algorithm.as_bytes();
        let (signed, signature) = (certificate.tbs_certificate.as_ref(), &certificate.signature_value.data);
        let issuer = certificate.issuer().as_raw();
        let mut outcome = CertificateError::UnknownIssuer;
        for authority in self.authorities.iter().filter(|authority| *authority.name == *issuer) {
            let fitting = self.algorithms.all.iter().copied().filter(|known| is_named(*known, by));
            match verify(&authority.key, fitting, signed, signature) {
                Ok(()) => return Ok(()),
                Err(error) => outcome = error,
            }
        }
        Err(outcome)
    }
}

impl Authority {
    fn of(certificate: &[u8]) -> Option<Self> {
        match X509Certificate::from_der(certificate) {
            Ok((_, parsed)) => {
                let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw.to_vec());
                Some(Self { name: parsed.subject().as_raw().into(), key })
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "a certificate of security.client_ca_file is strange: no client's certificate of X.509 version 1 counts by it"
                );
                None
            }
        }
    }
}

impl ClientCertVerifier for Judge {
    fn offer_client_auth(&self) -> bool {
        self.webpki.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match of_version_1(end_entity) {
            Some(certificate) => {
                self.is_signed(&certificate, now).map_err(Error::InvalidCertificate)?;
                Ok(ClientCertVerified::assertion())
            }
            None => self.webpki.verify_client_cert(end_entity, intermediates, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let Some(certificate) = of_version_1(cert) else {
            return self.webpki.verify_tls12_signature(message, cert, dss);
        };
        let offered = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == dss.scheme);
        // Those of TLS 1.3 alone are not offered in 1.2.
        let newer = [SignatureScheme::ML_DSA_44, SignatureScheme::ML_DSA_65, SignatureScheme::ML_DSA_87];
        let offered = offered.filter(|_| !newer.contains(&dss.scheme));
        let Some((_, algorithms)) = offered else {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        };
        let key = SubjectPublicKeyInfoDer::from(certificate.public_key().raw);
        verify(&key, algorithms.iter().copied(), message, dss.signature())
            .map_err(Error::InvalidCertificate)?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let Some(certificate) = of_version_1(cert) else {
            return self.webpki.verify_tls13_signature(message, cert, dss);
        };
        let key = SubjectPublicKeyInfoDer::from(certificate.public_key().raw);
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// The certificate, if it is one of version 1, which has no extensions.
fn of_version_1<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    // Strangers write extensions as they like, and only whether there are any is asked.
    let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
    let (rest, parsed) = parser.parse(certificate).ok()?;
    let is_one = parsed.version() == X509Version::V1 && parsed.extensions().is_empty() && rest.is_empty();
    is_one.then_some(parsed)
}

/// Whether that object identifier, in DER without its header, names the algorithm.
fn is_named(algorithm: &dyn SignatureVerificationAlgorithm, identifier: &[u8]) -> bool {
    const OBJECT_IDENTIFIER: u8 = 6;
    match *algorithm.signature_alg_id() {
        [OBJECT_IDENTIFIER, length, ref rest @ ..] => {
            rest.get(..usize::from(length)).is_some_and(|own| own == identifier)
        }
        _ => false,
    }
}

/// Whether this is the signature of the message by the key, whichever of the algorithms fits that key.
fn verify(
    key: &SubjectPublicKeyInfoDer<'_>,
    algorithms: impl Iterator<Item = &'static dyn SignatureVerificationAlgorithm>,
    message: &[u8],
    signature: &[u8],
) -> Result<(), CertificateError> {
    let key = RawPublicKeyEntity::try_from(key).map_err(|_| CertificateError::BadEncoding)?;
    let mut algorithms = algorithms;
    if algorithms.any(|algorithm| key.verify_signature(algorithm, message, signature).is_ok()) {
        return Ok(());
    }
    Err(CertificateError::BadSignature)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
    use rustls::RootCertStore;
    use rustls::server::WebPkiClientVerifier;

    use super::super::tests::version_1::{authority, certificate};
    use super::*;

    fn judge(authorities: &[&CertifiedIssuer<'static, KeyPair>]) -> Judge {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let algorithms = provider.signature_verification_algorithms;
        let mut roots = RootCertStore::empty();
        let known: Vec<_> = authorities.iter().map(|authority| authority.der().clone()).collect();
        assert_eq!(roots.add_parsable_certificates(known.iter().cloned()).1, 0);
        let webpki = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), Arc::new(provider));
        let known = Authorities { roots, certificates: known };
        Judge::new(webpki.build().unwrap(), &known, algorithms)
    }

    fn at(year: i64) -> UnixTime {
        let seconds = (year - 1970) * 31_556_952;
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds.try_into().unwrap()))
    }

    fn error(judge: &Judge, certificate: &CertificateDer<'_>, now: UnixTime) -> Option<CertificateError> {
        match judge.verify_client_cert(certificate, &[], now) {
            Ok(_) => None,
            Err(Error::InvalidCertificate(error)) => Some(error),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn one_of_version_1_counts_while_it_is_valid_and_if_an_authority_signed_it() {
        let (own, namesake) = (authority(), authority());
        let key = KeyPair::generate().unwrap();
        let shown = certificate(&own, "app", &key);
        assert!(of_version_1(&shown).is_some());
        let judge_of_both = judge(&[&namesake, &own]);
        assert_eq!(error(&judge_of_both, &shown, at(2025)), None);
        assert_eq!(error(&judge_of_both, &shown, at(2000)), Some(CertificateError::NotValidYet));
        assert_eq!(error(&judge_of_both, &shown, at(2060)), Some(CertificateError::Expired));
        // Authorities of the same name do not vouch for each other.
        assert_eq!(error(&judge(&[&namesake]), &shown, at(2025)), Some(CertificateError::BadSignature));
        let mut other = CertificateParams::new(Vec::new()).unwrap();
        other.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        other.distinguished_name.push(rcgen::DnType::OrganizationName, "another");
        let other = CertifiedIssuer::self_signed(other, KeyPair::generate().unwrap()).unwrap();
        assert_eq!(error(&judge(&[&other]), &shown, at(2025)), Some(CertificateError::UnknownIssuer));
    }

    #[test]
    fn an_authority_for_some_names_vouches_for_none_of_version_1() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let permitted = vec![rcgen::GeneralSubtree::DnsName("example.org".to_owned())];
        params.name_constraints =
            Some(rcgen::NameConstraints { permitted_subtrees: permitted, excluded_subtrees: Vec::new() });
        let bound = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let shown = certificate(&bound, "app", &KeyPair::generate().unwrap());
        assert_eq!(error(&judge(&[&bound]), &shown, at(2025)), Some(CertificateError::UnknownIssuer));
    }

    #[test]
    fn one_of_version_1_is_no_authority() {
        let own = authority();
        let (key, leaf) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let middle = certificate(&own, "middle", &key);
        let mut named = CertificateParams::new(Vec::new()).unwrap();
        named.distinguished_name.push(rcgen::DnType::CommonName, "middle");
        let issuer = rcgen::Issuer::new(named, key);
        let signed = CertificateParams::new(Vec::new()).unwrap().signed_by(&leaf, &issuer).unwrap();
        let below = certificate(&issuer, "app", &leaf);
        for shown in [signed.der(), &below] {
            assert!(
                judge(&[&own]).verify_client_cert(shown, std::slice::from_ref(&middle), at(2025)).is_err()
            );
        }
    }

    #[test]
    fn no_changed_bit_of_what_is_signed_passes() {
        let own = authority();
        let shown = certificate(&own, "app", &KeyPair::generate().unwrap()).to_vec();
        let judge = judge(&[&own]);
        let proven = |bytes: &[u8]| {
            let (_, certificate) = X509Certificate::from_der(bytes).unwrap();
            (certificate.tbs_certificate.as_ref().to_vec(), certificate.signature_value.data.to_vec())
        };
        let mut failed = 0;
        for (index, bit) in (0..shown.len()).flat_map(|index| (0..8).map(move |bit| (index, bit))) {
            let mut changed = shown.clone();
            changed[index] ^= 1 << bit;
            match judge.verify_client_cert(&CertificateDer::from(changed.clone()), &[], at(2025)) {
                // Headers around it are read less strictly than they are written.
                Ok(_) => assert_eq!(proven(&changed), proven(&shown), "byte {index}, bit {bit}"),
                Err(_) => failed += 1,
            }
        }
        assert!(failed > shown.len() * 7, "{failed} of {} bits", shown.len() * 8);
    }
}
