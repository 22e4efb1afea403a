//! What the fuzz targets run, briefly and on any compiler: `make fuzz` runs it for long.

#[allow(unreachable_pub, reason = "a library of its own for the fuzz targets")]
#[path = "../../fuzz/src/bodies.rs"]
mod bodies;

use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..600)
}

fn codes() -> impl Strategy<Value = [u8; 4]> {
    prop::sample::select(vec![[0, 3, 0, 0], [0, 3, 0, 2], [4, 210, 22, 46], [4, 210, 22, 47]])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn frames(data in bytes()) {
        bodies::frames(&data);
    }

    #[test]
    fn startup(body in bytes(), code in codes()) {
        bodies::startup(&body);
        // As far as the length goes, a packet.
        let packet = |parts: &[&[u8]]| {
            let rest = parts.concat();
            let length = u32::try_from(rest.len() + 8).expect("it is short").to_be_bytes();
            [&length[..], &code, &rest].concat()
        };
        bodies::startup(&packet(&[&body]));
        let value: Vec<u8> = body.iter().map(|byte| byte % 95 + b' ').collect();
        bodies::startup(&packet(&[b"user\0", &value, b"\0\0"]));
    }

    #[test]
    fn session(kind in 0..4_u8, data in bytes()) {
        bodies::session(&[&[kind][..], &data].concat());
    }
}
