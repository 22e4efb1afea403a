//! The name that a client's X.509 certificate is for.

use x509_parser::prelude::{FromDer, X509Certificate};

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
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn certificate(name: Option<&str>) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "metako");
        if let Some(name) = name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_name_is_the_common_name() {
        let name = |name| common_name(&certificate(name));
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
                std::sync::LazyLock::new(|| certificate(Some("app")));
            let mut bytes = GOOD.clone();
            let index = at.index(bytes.len());
            bytes[index] = byte;
            let _ = common_name(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            let _ = common_name(&bytes);
        }
    }
}
