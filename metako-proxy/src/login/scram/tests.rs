//! The exchange with the vectors of RFC 7677, with an independent client, and with messages that are wrong.

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use proptest::prelude::*;

use super::verifier::ITERATIONS;
use super::*;

const PLAIN: Binding<'static> = Binding { mechanism: Mechanism::Plain, end_point: None };

const CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const CLIENT_FINAL: &[u8] = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                              p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

fn rfc_verifier() -> Verifier {
    Verifier::derive("pencil", &STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), ITERATIONS)
}

#[test]
fn the_example_of_rfc_7677_works() {
    let verifier = rfc_verifier();
    let exchange = Exchange::begin_with_nonce(&verifier, CLIENT_FIRST, PLAIN, SERVER_NONCE).unwrap();
    assert_eq!(
        exchange.server_first(),
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    );
    assert_eq!(
        exchange.finish(CLIENT_FINAL).map(|proven| proven.server_final),
        Ok("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=".to_owned())
    );
}

#[test]
fn a_mock_refuses_even_a_proof_that_fits_its_key() {
    let verifier = Verifier { mock: true, ..rfc_verifier() };
    let exchange = Exchange::begin_with_nonce(&verifier, CLIENT_FIRST, PLAIN, SERVER_NONCE).unwrap();
    assert_eq!(exchange.finish(CLIENT_FINAL), Err(ScramError::WrongPassword));
}

#[test]
fn a_secret_of_postgresql_is_taken_as_one() {
    let secret = postgres_protocol::password::scram_sha_256(b"pencil");
    let verifier = Verifier::from_secret(&secret).unwrap();
    assert_eq!(verifier, Verifier::derive("pencil", &verifier.salt, ITERATIONS));
    assert!(verifier.is_of("pencil"));
    assert!(!verifier.is_of("Pencil"));
    assert!(!Verifier::mock([0; SALT_LEN], ITERATIONS).is_of(""));
    assert_ne!(verifier.salt, [0; SALT_LEN]);
    for text in ["SCRAM-SHA-256$", "SCRAM-SHA-256$0:AA==$AA==:AA==", "SCRAM-SHA-256$4096:AA==$AA==:AA=="] {
        assert_eq!(Verifier::from_secret(text), None, "{text}");
    }
}

#[test]
fn the_keys_of_a_password_are_known_again() {
    let verifier = rfc_verifier();
    let exchange = Exchange::begin_with_nonce(&verifier, CLIENT_FIRST, PLAIN, SERVER_NONCE).unwrap();
    let Proven { client_key, .. } = exchange.finish(CLIENT_FINAL).unwrap();
    assert!(verifier.is_of_keys(&client_key, &verifier.server_key()));
    assert!(!verifier.is_of_keys(&[0; 32], &verifier.server_key()));
    assert!(!verifier.is_of_keys(&client_key, &[0; 32]));
}

#[test]
fn what_was_not_offered_is_refused() {
    let verifier = rfc_verifier();
    for first in [
        &b"p=tls-server-end-point,,n=,r=abc"[..],
        b"n,a=other,n=,r=abc",
        b"n,,m=ext,n=,r=abc",
        b"n,,n=",
        b"n,,n=,r=a\x7f",
        b"n,,n=,r=\xff",
        b"",
    ] {
        assert!(matches!(
            Exchange::begin(&verifier, first, PLAIN, [0; NONCE_LEN]),
            Err(ScramError::Refused(_))
        ));
    }
}

#[test]
fn a_final_message_of_another_exchange_is_refused() {
    let verifier = rfc_verifier();
    for (nonce, client_final) in [
        ("other", CLIENT_FINAL),
        (SERVER_NONCE, b"c=eSws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=AA=="),
        (SERVER_NONCE, b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=AA=="),
        (SERVER_NONCE, b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"),
    ] {
        let exchange = Exchange::begin_with_nonce(&verifier, CLIENT_FIRST, PLAIN, nonce).unwrap();
        assert!(matches!(exchange.finish(client_final), Err(ScramError::Refused(_))));
    }
}

/// An exchange with the client of postgres-protocol; gives the ClientKey that it showed.
fn log_in(real: &str, given: &str, random: [u8; NONCE_LEN]) -> Result<Key, ScramError> {
    let verifier = Verifier::of_password(real, salt_of(b"key", "user"));
    exchange(&verifier, given, ChannelBinding::unsupported(), PLAIN, random)
}

fn exchange(
    verifier: &Verifier,
    given: &str,
    client: ChannelBinding,
    server: Binding<'_>,
    random: [u8; NONCE_LEN],
) -> Result<Key, ScramError> {
    let mut client = ScramSha256::new(given.as_bytes(), client);
    let client_first = client.message().to_vec();
    let exchange = Exchange::begin(verifier, &client_first, server, random)?;
    client.update(exchange.server_first().as_bytes()).unwrap();
    let proven = exchange.finish(client.message())?;
    client.finish(proven.server_final.as_bytes()).unwrap();
    Ok(proven.client_key)
}

#[test]
fn an_independent_client_agrees() {
    assert!(log_in("p\u{e4}ss\u{a0}w\u{f6}rd", "p\u{e4}ss w\u{f6}rd", [7; NONCE_LEN]).is_ok());
    assert_eq!(log_in("secret", "Secret", [7; NONCE_LEN]), Err(ScramError::WrongPassword));
    assert!(log_in("\u{7}", "\u{7}", [7; NONCE_LEN]).is_ok());
}

#[test]
fn the_proof_shows_the_client_key() {
    let key = log_in("secret", "secret", [7; NONCE_LEN]).unwrap();
    // The same one whatever the nonce, and the one that StoredKey is the hash of.
    assert_eq!(log_in("secret", "secret", [8; NONCE_LEN]), Ok(key));
    let verifier = Verifier::of_password("secret", salt_of(b"key", "user"));
    let hashed = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key);
    assert_eq!(hashed.as_ref(), verifier.stored_key);
}

fn message(error: ScramError) -> (String, String) {
    match error {
        ScramError::Refused(report) => (report.code.to_owned(), report.message),
        ScramError::WrongPassword => panic!("a wrong password"),
    }
}

#[test]
fn channel_binding_holds_both_ends_together() {
    let verifier = Verifier::of_password("secret", salt_of(b"key", "user"));
    let plus = Binding { mechanism: Mechanism::Plus, end_point: Some(b"our certificate") };
    let binding = |hash: &[u8]| ChannelBinding::tls_server_end_point(hash.to_vec());
    let run = |client, server| exchange(&verifier, "secret", client, server, [7; NONCE_LEN]);
    assert!(run(binding(b"our certificate"), plus).is_ok());
    assert_eq!(
        message(run(binding(b"another one"), plus).unwrap_err()),
        ("28000".to_owned(), "SCRAM channel binding check failed".to_owned())
    );
    // The client can, and was told that metako cannot.
    let offered = Binding { mechanism: Mechanism::Plain, ..plus };
    assert_eq!(
        message(run(ChannelBinding::unrequested(), offered).unwrap_err()),
        ("28000".to_owned(), "SCRAM channel binding negotiation error".to_owned())
    );
    assert!(run(ChannelBinding::unrequested(), PLAIN).is_ok());
    assert!(run(ChannelBinding::unsupported(), offered).is_ok());
    // The mechanism and the messages say different things.
    assert_eq!(message(run(ChannelBinding::unsupported(), plus).unwrap_err()).0, "08P01");
    assert_eq!(message(run(binding(b"our certificate"), offered).unwrap_err()).0, "08P01");
    let other = Exchange::begin(&verifier, b"p=tls-unique,,n=,r=a", plus, [0; NONCE_LEN]).unwrap_err();
    assert_eq!(message(other).1, "unsupported SCRAM channel-binding type \"tls-unique\"");
}

#[test]
fn initial_responses_hold_what_they_say() {
    let parse = |body| InitialResponse::parse(body).and_then(|response| response.data());
    assert_eq!(InitialResponse::parse(b"X\0junk").unwrap().mechanism, b"X");
    assert_eq!(parse(b"X\0\0\0\0\x02ab"), Ok(Some(&b"ab"[..])));
    assert_eq!(parse(b"X\0\xff\xff\xff\xff"), Ok(None));
    for (wrong, expected) in [
        (&b""[..], "invalid string in message"),
        (b"X", "invalid string in message"),
        (b"X\0", "insufficient data left in message"),
        (b"X\0\0\0\0", "insufficient data left in message"),
        (b"X\0\0\0\0\x03ab", "insufficient data left in message"),
        (b"X\0\0\0\0\x01ab", "invalid message format"),
        (b"X\0\xff\xff\xff\xffab", "invalid message format"),
        (b"X\0\x7f\xff\xff\xffab", "insufficient data left in message"),
        (b"X\0\x80\0\0\0ab", "insufficient data left in message"),
    ] {
        assert_eq!(
            message(parse(wrong).unwrap_err()),
            ("08P01".to_owned(), expected.to_owned()),
            "{wrong:?}"
        );
    }
}

fn detail(error: ScramError) -> String {
    match error {
        ScramError::Refused(report) => report.detail.unwrap_or(report.message),
        ScramError::WrongPassword => "wrong password".to_owned(),
    }
}

#[test]
fn what_is_wrong_is_told_in_postgresqls_words() {
    let verifier = rfc_verifier();
    for (first, expected) in [
        ("", "The message is empty."),
        ("n,,n=\0", "Message length does not match input length."),
        ("x,,n=,r=a", "Unexpected channel-binding flag \"'x'\"."),
        ("nn,,n=,r=a", "Comma expected, but found character \"'n'\"."),
        ("n", "Comma expected, but found character \"0x00\"."),
        ("n,b=c,n=,r=a", "Unexpected attribute \"'b'\" in client-first-message."),
        ("n,a=c,n=,r=a", "client uses authorization identity, but it is not supported"),
        ("n,,m=c,n=,r=a", "client requires an unsupported SCRAM extension"),
        ("n,,r=a", "Expected attribute \"n\" but found \"'r'\"."),
        ("n,,n,r=a", "Expected character \"=\" for attribute \"n\"."),
        ("n,,n=", "Expected attribute \"r\" but found \"0x00\"."),
        ("n,,n=,r=\u{e4}", "non-printable characters in SCRAM nonce"),
        ("n,,n=,r=a,1=b", "Attribute expected, but found invalid character \"'1'\"."),
    ] {
        let error = Exchange::begin(&verifier, first.as_bytes(), PLAIN, [0; NONCE_LEN]).unwrap_err();
        assert_eq!(detail(error), expected, "{first}");
    }
    // PostgreSQL minds neither an empty nonce nor an extension that is optional.
    for first in ["n,,n=,r=", "n,,n=x,r=a,x=y"] {
        assert!(Exchange::begin(&verifier, first.as_bytes(), PLAIN, [0; NONCE_LEN]).is_ok(), "{first}");
    }
    for (last, expected) in [
        ("nonsense", "Expected attribute \"c\" but found \"'n'\"."),
        ("c=eSws,nonsense", "unexpected SCRAM channel-binding attribute in client-final-message"),
        ("c=biws,r=a", "Attribute expected, but found end of string."),
        ("c=biws,r=a,p=AA==", "Malformed proof in client-final-message."),
        (
            "c=biws,r=a,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=,x=y",
            "Garbage found at the end of client-final-message.",
        ),
        (
            "c=eSws,r=a,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "unexpected SCRAM channel-binding attribute in client-final-message",
        ),
        ("c=biws,r=a,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=", "Nonce does not match."),
    ] {
        let exchange = Exchange::begin_with_nonce(&verifier, CLIENT_FIRST, PLAIN, SERVER_NONCE).unwrap();
        assert_eq!(detail(exchange.finish(last.as_bytes()).unwrap_err()), expected, "{last}");
    }
}

proptest! {
    #[test]
    fn any_messages_are_judged_without_panic(
        first in proptest::collection::vec(any::<u8>(), 0..80),
        last in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let _ = InitialResponse::parse(&first).and_then(|response| response.data().map(|data| data.is_some()));
        let verifier = Verifier::mock([1; SALT_LEN], ITERATIONS);
        let _ = Exchange::begin(&verifier, &first, PLAIN, [0; NONCE_LEN]);
        let exchange = Exchange::begin(&verifier, CLIENT_FIRST, PLAIN, [0; NONCE_LEN]).unwrap();
        prop_assert!(exchange.finish(&last).is_err());
    }

    #[test]
    fn messages_that_look_right_are_judged_without_panic(
        first in "[nyp][,=a-z]{0,6}(n=[^,]{0,4})?,r=[ -~\u{e4}]{0,20}(,[a-z]=.{0,4})?",
        last in "c=[A-Za-z=]{0,8},r=.{0,20}(,p=[A-Za-z0-9+/=]{0,50})?",
    ) {
        let verifier = Verifier::mock([1; SALT_LEN], ITERATIONS);
        if let Ok(exchange) = Exchange::begin(&verifier, first.as_bytes(), PLAIN, [0; NONCE_LEN]) {
            prop_assert!(exchange.finish(last.as_bytes()).is_err());
        }
    }
}
