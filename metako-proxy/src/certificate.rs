//! What log-in needs to know of an X.509 certificate: its hash for channel binding, and the name that it is for.

use aws_lc_rs::digest::{self, SHA256, SHA384, SHA512};
use x509_parser::der_parser::oid;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;

/// The data of the channel binding `tls-server-end-point` (RFC 5929, section 4.1) for a server's certificate in DER.
///
/// `None` where the signature names no hash, as with Ed25519: then channel binding is not defined.
pub(crate) fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let signed_with = &parsed.signature_algorithm;
    let name = signed_with.algorithm.to_id_string();
    let hash = match SignatureAlgorithm::try_from(signed_with).ok()? {
        SignatureAlgorithm::RSASSA_PSS(parameters) => {
            let hash = parameters.hash_algorithm_oid();
            if *hash == oid!(2.16.840.1.101.3.4.2.2) {
                &SHA384
            } else if *hash == oid!(2.16.840.1.101.3.4.2.3) {
                &SHA512
            } else {
                &SHA256
            }
        }
        // Each by its whole name: the hash is part of it.
        _ => match name.as_str() {
            // MD5 and SHA-1 are replaced by SHA-256.
            "1.2.840.113549.1.1.4"
            | "1.2.840.113549.1.1.5"
            | "1.2.840.10045.4.1"
            | "1.2.840.113549.1.1.11"
            | "1.2.840.10045.4.3.2" => &SHA256,
            "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &SHA384,
            "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &SHA512,
            _ => return None,
        },
    };
    Some(digest::digest(hash, certificate).as_ref().to_vec())
}

/// The first common name of a certificate in DER, which for a client's is the user that it is for.
pub(crate) fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    // A zero byte would end the name for others who read it.
    (!name.is_empty() && !name.contains('\0')).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SignatureAlgorithm as Signature};

    fn certificate(algorithm: &'static Signature, name: Option<&str>) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "metako");
        if let Some(name) = name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let key = KeyPair::generate_for(algorithm).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let p256 = certificate(&rcgen::PKCS_ECDSA_P256_SHA256, None);
        assert_eq!(end_point_hash(&p256).as_deref(), Some(digest::digest(&SHA256, &p256).as_ref()));
        let p384 = certificate(&rcgen::PKCS_ECDSA_P384_SHA384, None);
        assert_eq!(end_point_hash(&p384).as_deref(), Some(digest::digest(&SHA384, &p384).as_ref()));
        assert_eq!(end_point_hash(&certificate(&rcgen::PKCS_ED25519, None)), None);
        assert_eq!(end_point_hash(b"no certificate"), None);
    }

    #[test]
    fn the_name_is_the_common_name() {
        let name = |name| common_name(&certificate(&rcgen::PKCS_ECDSA_P256_SHA256, name));
        assert_eq!(name(Some("app")), Some("app".to_owned()));
        assert_eq!(name(Some("Jürgen")), Some("Jürgen".to_owned()));
        assert_eq!(name(Some("ap\0p")), None);
        assert_eq!(name(Some("")), None);
        assert_eq!(name(None), None);
        assert_eq!(common_name(b""), None);
    }

    proptest! {
        #[test]
        fn broken_certificates_never_panic(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            static GOOD: std::sync::LazyLock<Vec<u8>> =
                std::sync::LazyLock::new(|| certificate(&rcgen::PKCS_ECDSA_P256_SHA256, Some("app")));
            let mut bytes = GOOD.clone();
            let index = at.index(bytes.len());
            bytes[index] = byte;
            let _ = (end_point_hash(&bytes), common_name(&bytes));
            bytes.truncate(cut.index(bytes.len()));
            let _ = (end_point_hash(&bytes), common_name(&bytes));
        }
    }
}
