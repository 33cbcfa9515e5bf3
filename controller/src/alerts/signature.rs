//! Pure: how a webhook proves where it comes from.
//!
//! `Edgefleet-Signature: v1=HEX` is HMAC-SHA256 with the channel's secret over the text of
//! `Edgefleet-Timestamp` (seconds since 1970 of this try), a dot, and the body's bytes. A receiver computes the
//! same, compares in constant time, and refuses timestamps more than five minutes off.

use edgefleet_shared::{digest::encode_hex, time::Timestamp};
use ring::hmac;

pub(super) const TIMESTAMP_HEADER: &str = "Edgefleet-Timestamp";
pub(super) const SIGNATURE_HEADER: &str = "Edgefleet-Signature";
pub(super) const KEY_HEADER: &str = "Idempotency-Key";

/// The value of [`SIGNATURE_HEADER`].
pub(super) fn sign(secret: &[u8], at: Timestamp, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut context = hmac::Context::with_key(&key);
    context.update(at.as_secs().to_string().as_bytes());
    context.update(b".");
    context.update(body);
    format!("v1={}", encode_hex(context.sign().as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_what_other_programs_compute() {
        // python3: hmac.new(b"a secret of 20 bytes", b'1800000000.{"a":1}', "sha256").hexdigest()
        let signed = sign(b"a secret of 20 bytes", Timestamp::from_secs(1_800_000_000), b"{\"a\":1}");
        assert_eq!(signed, "v1=3b1a2bffb7c314916102e0b345d8f4bd8918099bfb6c8d8a41f124c33b8c8af8");
        let other = sign(b"a secret of 20 bytes", Timestamp::from_secs(1_800_000_001), b"{\"a\":1}");
        assert_ne!(signed, other);
    }
}
