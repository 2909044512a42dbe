//! The signatures of a delivery and the secrets that make them, by Standard Webhooks 1.0.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    hmac,
    signature::{Ed25519KeyPair, KeyPair as _},
};

use crate::domain::entities::Signing;

/// What marks the plain form of an ed25519 seed, so that every secret tells how it signs.
const SEED_MARK: &[u8] = b"whsk_";

/// What a request is signed with.
#[derive(Debug, Clone)]
pub enum SignatureKey {
    /// HMAC-SHA256.
    V1(hmac::Key),
    /// ed25519.
    V1a(Arc<Ed25519KeyPair>),
}

impl SignatureKey {
    /// Reads what a signing secret seals (see [`NewSecret::plain`]). Whatever is no marked seed of
    /// 32 bytes is the key of an HMAC, of any length.
    pub fn from_plain(plain: &[u8]) -> Self {
        plain
            .strip_prefix(SEED_MARK)
            .and_then(|seed| Ed25519KeyPair::from_seed_unchecked(seed).ok())
            .map_or_else(
                || Self::V1(hmac::Key::new(hmac::HMAC_SHA256, plain)),
                |pair| Self::V1a(Arc::new(pair)),
            )
    }
}

/// A secret that was just made.
pub struct NewSecret {
    /// What is sealed: the bytes of an HMAC's key, or a marked ed25519 seed. Read by
    /// [`SignatureKey::from_plain`].
    pub plain: Vec<u8>,
    /// As it is shown once: `whsec_` and the base64 of the key, or `whsk_` and the base64 of the seed
    /// and the public key (64 bytes).
    pub secret: String,
    /// For ed25519: `whpk_` and the base64 of the public key (32 bytes).
    pub public_key: Option<String>,
}

impl NewSecret {
    /// How many random bytes a secret is made of.
    pub const BYTES: usize = 32;

    /// Makes a secret of [`Self::BYTES`] random bytes; `None` when there are too few or too many for
    /// an ed25519 seed.
    pub fn make(signing: Signing, random: Vec<u8>) -> Option<Self> {
        match signing {
            Signing::V1 => Some(Self {
                secret: format!("whsec_{}", STANDARD.encode(&random)),
                plain: random,
                public_key: None,
            }),
            Signing::V1a => {
                let pair = Ed25519KeyPair::from_seed_unchecked(&random).ok()?;
                let public = pair.public_key().as_ref();
                let private = STANDARD.encode([&random, public].concat());
                Some(Self {
                    secret: format!("whsk_{private}"),
                    public_key: Some(format!("whpk_{}", STANDARD.encode(public))),
                    plain: [SEED_MARK, &random].concat(),
                })
            }
        }
    }
}

impl fmt::Debug for NewSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewSecret")
            .field("public_key", &self.public_key)
            .finish_non_exhaustive()
    }
}

/// The value of `webhook-signature`: for each key `v1,` and the base64 of the HMAC-SHA256, or `v1a,`
/// and that of the ed25519 signature, over `id.timestamp.body`, in the order of the keys, separated
/// by spaces. Empty without a key.
pub fn signature<'a>(
    keys: impl IntoIterator<Item = &'a SignatureKey>,
    id: &str,
    timestamp: i64,
    body: &[u8],
) -> String {
    let timestamp = timestamp.to_string();
    let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    let mut value = String::with_capacity(48);
    for key in keys {
        if !value.is_empty() {
            value.push(' ');
        }
        match key {
            SignatureKey::V1(key) => {
                let mut context = hmac::Context::with_key(key);
                for part in parts {
                    context.update(part);
                }
                value.push_str("v1,");
                STANDARD.encode_string(context.sign(), &mut value);
            }
            SignatureKey::V1a(pair) => {
                value.push_str("v1a,");
                STANDARD.encode_string(pair.sign(&parts.concat()), &mut value);
            }
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    fn bytes(base64: &str) -> Vec<u8> {
        STANDARD.decode(base64).unwrap()
    }

    fn hmac_key(base64: &str) -> SignatureKey {
        SignatureKey::from_plain(&bytes(base64))
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .chars()
            .filter_map(|c| c.to_digit(16))
            .map(|d| u8::try_from(d).unwrap())
            .collect();
        digits
            .chunks(2)
            .map(|pair| pair[0] * 16 + pair[1])
            .collect()
    }

    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const AT: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SECRET: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const SIGNED: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const SEED: &str = "6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbc=";
    const PRIVATE: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
    const PUBLIC: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
    const SIGNED_A: &str = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";

    #[test]
    fn the_published_vector_of_standard_webhooks_is_met() {
        assert_eq!(signature([&hmac_key(SECRET)], ID, AT, BODY), SIGNED);
    }

    #[test]
    fn the_published_vector_of_ed25519_signatures_is_met() {
        let made = NewSecret::make(Signing::V1a, bytes(SEED)).unwrap();
        assert_eq!(made.secret, PRIVATE);
        assert_eq!(made.public_key.as_deref(), Some(PUBLIC));
        let key = SignatureKey::from_plain(&made.plain);
        assert_eq!(signature([&key], ID, AT, BODY), SIGNED_A);
    }

    /// RFC 8032, 7.1, test 3.
    #[test]
    fn a_seed_is_the_private_key_of_rfc_8032() {
        let seed = hex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7");
        let public = hex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025");
        let signed = hex(
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
             18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        );
        let made = NewSecret::make(Signing::V1a, seed).unwrap();
        let told = made.public_key.unwrap();
        assert_eq!(bytes(told.strip_prefix("whpk_").unwrap()), public);
        let SignatureKey::V1a(pair) = SignatureKey::from_plain(&made.plain) else {
            panic!("it is no ed25519 key")
        };
        assert_eq!(pair.sign(&[0xaf, 0x82]).as_ref(), signed);
    }

    #[test]
    fn an_ed25519_signature_holds_for_its_id_time_and_body_alone() {
        let made = NewSecret::make(Signing::V1a, vec![7; NewSecret::BYTES]).unwrap();
        let key = SignatureKey::from_plain(&made.plain);
        let value = signature([&key], ID, AT, BODY);
        let signed = bytes(value.strip_prefix("v1a,").unwrap());
        let public = bytes(made.public_key.unwrap().strip_prefix("whpk_").unwrap());
        let public = UnparsedPublicKey::new(&ED25519, public);
        for (content, holds) in [
            (format!("{ID}.{AT}.{{\"test\": 2432232314}}"), true),
            (format!("{ID}.{AT}.{{\"test\": 2432232315}}"), false),
            (format!("{ID}.1614265331.{{\"test\": 2432232314}}"), false),
            (format!("other.{AT}.{{\"test\": 2432232314}}"), false),
        ] {
            let verified = public.verify(content.as_bytes(), &signed);
            assert_eq!(verified.is_ok(), holds, "{content}");
        }
    }

    #[test]
    fn every_key_signs_in_its_order_and_no_key_signs_nothing() {
        let (new, old) = (hmac_key("AAAA"), hmac_key(SECRET));
        let seed = NewSecret::make(Signing::V1a, bytes(SEED)).unwrap();
        let other_kind = SignatureKey::from_plain(&seed.plain);
        let all = signature([&new, &other_kind, &old], ID, AT, BODY);
        let parts: Vec<_> = all.split(' ').collect();
        assert_eq!(parts.len(), 3);
        assert!(parts[0].starts_with("v1,"));
        assert_ne!(parts[0], SIGNED);
        assert_eq!(parts[1..], [SIGNED_A, SIGNED]);
        assert_eq!(signature([], ID, 1, BODY), "");
    }

    #[test]
    fn only_a_marked_seed_of_its_length_is_an_ed25519_key() {
        let marked = |length| [SEED_MARK, &vec![7; length][..]].concat();
        for (plain, is_pair) in [
            (marked(32), true),
            (marked(27), false),
            (marked(31), false),
            (marked(33), false),
            (vec![7; 32], false),
            (Vec::new(), false),
        ] {
            let key = SignatureKey::from_plain(&plain);
            assert_eq!(matches!(key, SignatureKey::V1a(_)), is_pair, "{plain:?}");
        }
        assert!(NewSecret::make(Signing::V1a, vec![7; 31]).is_none());
    }

    #[test]
    fn no_secret_is_printed() {
        for signing in Signing::ALL {
            let made = NewSecret::make(signing, vec![7; NewSecret::BYTES]).unwrap();
            let printed = format!("{made:?} {:?}", SignatureKey::from_plain(&made.plain));
            let (_, secret) = made.secret.split_once('_').unwrap();
            let head: String = secret.chars().take(20).collect();
            assert!(!printed.contains(&head), "{printed}");
            assert!(!printed.contains("7, 7"), "{printed}");
        }
    }
}
