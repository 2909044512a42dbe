//! Whether a request is signed, as a receiver checks it by Standard Webhooks 1.0. Nothing here is
//! shared with what signs.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderMap;
use ring::hmac;

/// How far the time of a request may lie from the receiver's, in seconds.
const TOLERANCE: i64 = 5 * 60;

/// Why a request is not to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignatureFault {
    /// A header is missing or unreadable.
    #[error("there is no usable header {0}")]
    Header(&'static str),
    /// It may be an old request that somebody sends again.
    #[error("its webhook-timestamp is more than 5 minutes off")]
    Time,
    /// None of its signatures fits.
    #[error("no signature fits the body and the secret")]
    Mismatch,
}

/// A webhook's secret, `whsec_…`.
#[derive(Clone)]
pub(crate) struct Secret(hmac::Key);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// `None` when the text is no secret of this form.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let key = STANDARD.decode(text.strip_prefix("whsec_")?).ok()?;
        (!key.is_empty()).then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// Checks a request that came in at `now`, in Unix seconds.
    ///
    /// # Errors
    /// Why it is not to be trusted.
    pub(crate) fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: i64,
    ) -> Result<(), SignatureFault> {
        let header = |name: &'static str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.ok_or(SignatureFault::Header(name))
        };
        let id = header("webhook-id")?;
        let timestamp = header("webhook-timestamp")?;
        let signatures = header("webhook-signature")?;
        let sent_at = timestamp.parse::<i64>();
        let sent_at = sent_at.map_err(|_| SignatureFault::Header("webhook-timestamp"))?;
        if now.abs_diff(sent_at) > TOLERANCE.unsigned_abs() {
            return Err(SignatureFault::Time);
        }
        let mut signed = format!("{id}.{timestamp}.").into_bytes();
        signed.extend_from_slice(body);
        let fits = |signature: &str| {
            let tag = signature.strip_prefix("v1,");
            let tag = tag.and_then(|tag| STANDARD.decode(tag).ok());
            tag.is_some_and(|tag| hmac::verify(&self.0, &signed, &tag).is_ok())
        };
        if signatures.split(' ').any(fits) {
            Ok(())
        } else {
            Err(SignatureFault::Mismatch)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The vector that Standard Webhooks publishes.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SENT: i64 = 1_614_265_330;
    const HEADERS: [(&str, &str); 3] = [
        ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
        ("webhook-timestamp", "1614265330"),
        (
            "webhook-signature",
            "v1,AAAA v1a,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
    ];

    fn headers(change: Option<(&str, &str)>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let changed = change.map(|(name, _)| name);
        let kept = HEADERS
            .into_iter()
            .filter(|(name, _)| Some(*name) != changed);
        for (name, value) in kept.chain(change.filter(|(_, value)| !value.is_empty())) {
            let name: http::HeaderName = name.parse().unwrap();
            headers.insert(name, value.parse().unwrap());
        }
        headers
    }

    fn verify(change: Option<(&str, &str)>, body: &[u8], now: i64) -> Result<(), SignatureFault> {
        let secret = Secret::parse(SECRET).expect("it is one");
        secret.verify(&headers(change), body, now)
    }

    #[test]
    fn the_published_vector_is_accepted_within_the_tolerance() {
        for now in [SENT, SENT + TOLERANCE, SENT - TOLERANCE] {
            assert_eq!(verify(None, BODY, now), Ok(()));
        }
        for now in [
            SENT + TOLERANCE + 1,
            SENT - TOLERANCE - 1,
            i64::MIN,
            i64::MAX,
        ] {
            assert_eq!(verify(None, BODY, now), Err(SignatureFault::Time));
        }
    }

    #[test]
    fn anything_that_was_changed_is_refused() {
        use SignatureFault::{Header, Mismatch};
        for (change, fault) in [
            (("webhook-id", "msg_other"), Mismatch),
            (("webhook-timestamp", "1614265331"), Mismatch),
            (("webhook-timestamp", "soon"), Header("webhook-timestamp")),
            (("webhook-signature", "v1,AAAA"), Mismatch),
            (
                (
                    "webhook-signature",
                    "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
                ),
                Mismatch,
            ),
            (("webhook-id", ""), Header("webhook-id")),
            (("webhook-timestamp", ""), Header("webhook-timestamp")),
            (("webhook-signature", ""), Header("webhook-signature")),
        ] {
            assert_eq!(verify(Some(change), BODY, SENT), Err(fault), "{change:?}");
        }
        assert_eq!(
            verify(None, br#"{"test": 2432232315}"#, SENT),
            Err(Mismatch)
        );
    }

    #[test]
    fn a_secret_has_its_form_and_is_never_shown() {
        for text in ["", "whsec_", "whsec_!", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"] {
            assert!(Secret::parse(text).is_none(), "{text}");
        }
        assert_eq!(format!("{:?}", Secret::parse(SECRET).unwrap()), "Secret(…)");
    }
}
