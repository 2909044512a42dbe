//! The signature of a delivery, by Standard Webhooks 1.0.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;

/// The value of `webhook-signature`: for each key `v1,` and the base64 of the HMAC-SHA256 over
/// `id.timestamp.body`, in the order of the keys, separated by spaces. Empty without a key.
pub fn signature_v1<'a>(
    keys: impl IntoIterator<Item = &'a hmac::Key>,
    id: &str,
    timestamp: i64,
    body: &[u8],
) -> String {
    let timestamp = timestamp.to_string();
    let mut value = String::with_capacity(48);
    for key in keys {
        let mut context = hmac::Context::with_key(key);
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            context.update(part);
        }
        if !value.is_empty() {
            value.push(' ');
        }
        value.push_str("v1,");
        STANDARD.encode_string(context.sign(), &mut value);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(base64: &str) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(base64).unwrap())
    }

    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNED: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn the_published_vector_of_standard_webhooks_is_met() {
        let key = key("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        assert_eq!(signature_v1([&key], ID, 1_614_265_330, BODY), SIGNED);
    }

    #[test]
    fn every_key_signs_in_its_order_and_no_key_signs_nothing() {
        let (new, old) = (key("AAAA"), key("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));
        let both = signature_v1([&new, &old], ID, 1_614_265_330, BODY);
        let parts: Vec<_> = both.split(' ').collect();
        assert_eq!(parts.len(), 2);
        assert_ne!(parts[0], SIGNED);
        assert_eq!(parts[1], SIGNED);
        assert_eq!(signature_v1([], ID, 1, BODY), "");
    }
}
