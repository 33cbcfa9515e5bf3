//! Numbers as bytes, and what turns a column of them into small ones.

use std::fmt::Write as _;

/// Digits behind the point of a column at most: an `i64` has no more.
pub(super) const MAX_DECIMALS: u32 = 18;

/// How the numbers of a column are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Plain,
    /// Each as its difference to the one before: times, sequence numbers, buckets of sketches.
    Steps,
    /// Each as its distance from the first: counts of bins.
    Middle,
}

impl Coding {
    pub(super) const ALL: [Self; 3] = [Self::Plain, Self::Steps, Self::Middle];
}

/// LEB128.
pub(super) fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// `None` if there is no number.
pub(super) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for at in 0..10u32 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f).checked_mul(1u64.checked_shl(7 * at)?)?;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

pub(super) fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

pub(super) fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

/// Digits behind the point of a number as JSON writes it; `None` of one with an exponent, and of what is no number.
pub(super) fn decimals(token: &str) -> Option<u32> {
    let digits = token.strip_prefix('-').unwrap_or(token);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    digits.split_once('.').map_or(Some(0), |(_, behind)| u32::try_from(behind.len()).ok())
}

/// The number times ten to the power of `decimals`; `None` if [`render`] would not give the same token again.
pub(super) fn mantissa(token: &str, decimals: u32, scratch: &mut String) -> Option<i64> {
    let (whole, behind) = token.split_once('.').unwrap_or((token, ""));
    let missing = decimals.checked_sub(u32::try_from(behind.len()).ok()?)?;
    scratch.clear();
    scratch.push_str(whole);
    scratch.push_str(behind);
    let mantissa = scratch.parse::<i64>().ok()?.checked_mul(10i64.checked_pow(missing)?)?;
    scratch.clear();
    render(scratch, mantissa, decimals);
    (scratch == token).then_some(mantissa)
}

/// As JSON writes it: a number with decimals has at least one, and no more than it needs.
pub(super) fn render(out: &mut String, mantissa: i64, decimals: u32) {
    if decimals == 0 {
        let _ = write!(out, "{mantissa}"); // a String takes everything
        return;
    }
    let unit = 10u64.pow(decimals.min(MAX_DECIMALS));
    let (whole, behind) = (mantissa.unsigned_abs() / unit, mantissa.unsigned_abs() % unit);
    let sign = if mantissa < 0 { "-" } else { "" };
    let _ = write!(out, "{sign}{whole}.{behind:0width$}", width = decimals as usize);
    let needed = out.trim_end_matches('0').len();
    out.truncate(if out.as_bytes().get(needed - 1) == Some(&b'.') { needed + 1 } else { needed });
}

/// The numbers in the coding that makes them smallest.
pub(super) fn smallest(numbers: &[i64]) -> (Coding, Vec<i64>) {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    let steps = numbers.iter().scan(0i64, |before, n| Some(n.checked_sub(std::mem::replace(before, *n))));
    let around = numbers.iter().map(|n| n.checked_sub(middle));
    let candidates = [
        (Coding::Plain, Some(numbers.to_vec())),
        (Coding::Steps, steps.collect()),
        (Coding::Middle, [Some(middle)].into_iter().chain(around).collect()),
    ];
    // In bits: about what is left of a number when its bytes are compressed.
    let size =
        |numbers: &Vec<i64>| numbers.iter().map(|n| u64::from(65 - zigzag(*n).leading_zeros())).sum::<u64>();
    let coded = candidates.into_iter().filter_map(|(coding, numbers)| Some((coding, numbers?)));
    coded.min_by_key(|(_, numbers)| size(numbers)).unwrap_or((Coding::Plain, Vec::new()))
}
