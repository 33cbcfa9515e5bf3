//! Which part of a blob a request wants (RFC 9110, section 14). One range; more than one, or another unit, is
//! answered with everything, as the standard allows.

use axum::http::{HeaderMap, header};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    /// `len` is at least 1 and within the size.
    Part {
        start: u64,
        len: u64,
    },
    /// The range lies outside.
    Nothing,
}

/// `tag`: the blob's entity tag, for `If-Range`. `size`: in bytes.
pub(super) fn wanted(headers: &HeaderMap, tag: &str, size: u64) -> Wanted {
    if headers.get(header::IF_RANGE).is_some_and(|value| value.as_bytes() != tag.as_bytes()) {
        return Wanted::All;
    }
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let Some((first, last)) = range.and_then(|text| text.strip_prefix("bytes=")?.trim().split_once('-'))
    else {
        return Wanted::All;
    };
    let number = |text: &str| {
        // `parse` alone would take a plus sign.
        text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse::<u64>().ok())?
    };
    let (first, last) = (first.trim(), last.trim());
    match (first.is_empty(), last.is_empty()) {
        (true, true) => Wanted::All,
        // The last so many bytes.
        (true, false) => match number(last) {
            Some(count) if count > 0 && size > 0 => {
                let len = count.min(size);
                Wanted::Part { start: size - len, len }
            }
            Some(_) => Wanted::Nothing,
            None => Wanted::All,
        },
        (false, open) => {
            let end = if open { Some(u64::MAX) } else { number(last) };
            match (number(first), end) {
                (Some(start), Some(end)) if end < start => Wanted::All,
                (Some(start), Some(_)) if start >= size => Wanted::Nothing,
                (Some(start), Some(end)) => Wanted::Part { start, len: end.min(size - 1) - start + 1 },
                _ => Wanted::All,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    fn of(range: &str, size: u64) -> Wanted {
        let headers = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_str(range).unwrap())]);
        wanted(&headers, "\"x\"", size)
    }

    #[test]
    fn single_ranges_are_served_and_everything_else_is_answered_whole() {
        let part = |start, len| Wanted::Part { start, len };
        for (range, size, expected) in [
            ("bytes=0-9", 100, part(0, 10)),
            ("bytes=90-", 100, part(90, 10)),
            ("bytes=90-1000", 100, part(90, 10)),
            ("bytes=-10", 100, part(90, 10)),
            ("bytes=-1000", 100, part(0, 100)),
            ("bytes=100-", 100, Wanted::Nothing),
            ("bytes=-0", 100, Wanted::Nothing),
            ("bytes=0-", 0, Wanted::Nothing),
            ("bytes=9-0", 100, Wanted::All),
            ("bytes=0-1,5-6", 100, Wanted::All),
            ("bytes=+1-5", 100, Wanted::All),
            ("lines=0-9", 100, Wanted::All),
            ("bytes=a-b", 100, Wanted::All),
            ("bytes=18446744073709551616-", 100, Wanted::All),
        ] {
            assert_eq!(of(range, size), expected, "{range} of {size}");
        }
    }

    #[test]
    fn a_range_of_another_version_is_answered_whole() {
        let headers = HeaderMap::from_iter([
            (header::RANGE, HeaderValue::from_static("bytes=0-1")),
            (header::IF_RANGE, HeaderValue::from_static("\"y\"")),
        ]);
        assert_eq!(wanted(&headers, "\"x\"", 10), Wanted::All);
        assert_eq!(wanted(&headers, "\"y\"", 10), Wanted::Part { start: 0, len: 2 });
    }

    proptest! {
        #[test]
        fn parts_lie_within_the_blob(range in "bytes=[0-9]{0,20}-[0-9]{0,20}", size in 0u64..50) {
            if let Wanted::Part { start, len } = of(&range, size) {
                prop_assert!(len > 0 && start + len <= size);
            }
        }
    }
}
