//! Lets stock clients of gRPC name a socket file as they do.
//!
//! They send its path as the name of the host, percent-encoded: `run%2Fagent.sock`. RFC 3986 (3.2.2) allows that, the
//! parser below HTTP/2 does not and resets the call. Nobody looks at that name on a socket file, so each `%` in it
//! becomes `-` before it is parsed. The length stays, and with it frames (RFC 9113, 4.1) and the table of fields that
//! both sides keep (RFC 7541, 4.1). All else passes as it is, also what is no HTTP/2.

/// `HEADERS` and `CONTINUATION`: the frames with fields.
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Stream and weight, before the fields of a frame with [`PRIORITY`].
const PRIORITY_BYTES: usize = 5;
const NAME: &[u8] = b":authority";
/// Where [`NAME`] stands in HPACK's static table.
const NAME_INDEX: u8 = 1;
/// Beyond it no length is meant seriously.
const MAX_SHIFT: u32 = 21;

/// Looks at the bytes of one connection after the preface, wherever they are cut.
pub(super) struct Authority {
    frame: Frame,
    at: At,
}

enum Frame {
    Head {
        bytes: [u8; 9],
        filled: usize,
    },
    /// The length of the padding comes next.
    Padded {
        length: usize,
        priority: usize,
    },
    /// How many bytes are left of what.
    Payload {
        before: usize,
        fields: usize,
        after: usize,
    },
}

/// A place among the fields.
#[derive(Clone, Copy)]
enum At {
    Field,
    Number {
        value: usize,
        shift: u32,
        then: Then,
    },
    Length(Text),
    Text {
        text: Text,
        packed: bool,
        left: usize,
        matched: usize,
    },
    /// Not HPACK.
    Lost,
}

/// What a number counts.
#[derive(Clone, Copy)]
enum Then {
    /// A whole field, or a size of the table.
    Field,
    /// A name other than ours.
    Value,
    Text {
        text: Text,
        packed: bool,
    },
}

#[derive(Clone, Copy)]
enum Text {
    Name,
    Value { is_authority: bool },
}

impl Authority {
    pub(super) fn new() -> Self {
        Self { frame: Frame::Head { bytes: [0; 9], filled: 0 }, at: At::Field }
    }

    /// Takes the next bytes of the connection and changes what has to be changed.
    pub(super) fn pass(&mut self, mut bytes: &mut [u8]) {
        while let Some(first) = bytes.first().copied() {
            let taken = match &mut self.frame {
                Frame::Head { bytes: head, filled } => {
                    head[*filled] = first;
                    *filled += 1;
                    if *filled == head.len() {
                        let head = *head;
                        self.begin(head);
                    }
                    1
                }
                Frame::Padded { length, priority } => {
                    let left = length.saturating_sub(1);
                    let before = left.min(*priority);
                    let after = (left - before).min(usize::from(first));
                    self.frame = Frame::Payload { before, fields: left - before - after, after };
                    1
                }
                Frame::Payload { before: left @ 1.., .. } => take(left, bytes).len(),
                Frame::Payload { fields: left @ 1.., .. } => {
                    let fields = take(left, bytes);
                    fields.iter_mut().for_each(|byte| self.at = self.at.next(byte));
                    fields.len()
                }
                Frame::Payload { after: left @ 1.., .. } => take(left, bytes).len(),
                Frame::Payload { .. } => {
                    self.frame = Frame::Head { bytes: [0; 9], filled: 0 };
                    0
                }
            };
            bytes = &mut bytes[taken..];
        }
    }

    fn begin(&mut self, head: [u8; 9]) {
        let [high, middle, low, kind, flags, ..] = head;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let has = |flag| kind == HEADERS && flags & flag != 0;
        let priority = if has(PRIORITY) { PRIORITY_BYTES } else { 0 };
        if kind == HEADERS && !matches!(self.at, At::Lost) {
            self.at = At::Field;
        }
        self.frame = match kind {
            HEADERS if has(PADDED) && length > 0 => Frame::Padded { length, priority },
            HEADERS | CONTINUATION => {
                let before = length.min(priority);
                Frame::Payload { before, fields: length - before, after: 0 }
            }
            _ => Frame::Payload { before: length, fields: 0, after: 0 },
        };
    }
}

/// As many of `bytes` as are left of a part.
fn take<'b>(left: &mut usize, bytes: &'b mut [u8]) -> &'b mut [u8] {
    let taken = bytes.len().min(*left);
    *left -= taken;
    &mut bytes[..taken]
}

impl At {
    /// The next byte of RFC 7541, 6.
    fn next(self, byte: &mut u8) -> Self {
        match self {
            Self::Field => match *byte {
                0x80.. => Self::number(*byte, 0x7f, Then::Field),
                0x40.. => Self::name(*byte, 0x3f),
                0x20.. => Self::number(*byte, 0x1f, Then::Field),
                _ => Self::name(*byte, 0x0f),
            },
            Self::Number { shift, .. } if shift > MAX_SHIFT => Self::Lost,
            Self::Number { value, shift, then } => {
                let value = value + (usize::from(*byte & 0x7f) << shift);
                match *byte & 0x80 {
                    0 => Self::counted(value, then),
                    _ => Self::Number { value, shift: shift + 7, then },
                }
            }
            Self::Length(text) => Self::number(*byte, 0x7f, Then::Text { text, packed: *byte & 0x80 != 0 }),
            Self::Text { text, packed, left, mut matched } => {
                match text {
                    Text::Name if !packed && NAME.get(matched) == Some(byte) => matched += 1,
                    Text::Name => matched = usize::MAX,
                    Text::Value { is_authority: true } if !packed && *byte == b'%' => *byte = b'-',
                    Text::Value { .. } => {}
                }
                match left - 1 {
                    0 => text.end(matched == NAME.len()),
                    left => Self::Text { text, packed, left, matched },
                }
            }
            Self::Lost => Self::Lost,
        }
    }

    /// A field whose name is in a table, or follows.
    fn name(byte: u8, mask: u8) -> Self {
        match byte & mask {
            0 => Self::Length(Text::Name),
            index if index == mask => Self::Number { value: usize::from(mask), shift: 0, then: Then::Value },
            index => Self::Length(Text::Value { is_authority: index == NAME_INDEX }),
        }
    }

    fn number(byte: u8, mask: u8, then: Then) -> Self {
        let value = usize::from(byte & mask);
        match byte & mask == mask {
            true => Self::Number { value, shift: 0, then },
            false => Self::counted(value, then),
        }
    }

    fn counted(value: usize, then: Then) -> Self {
        match then {
            Then::Field => Self::Field,
            Then::Value => Self::Length(Text::Value { is_authority: false }),
            Then::Text { text, .. } if value == 0 => text.end(false),
            Then::Text { text, packed } => Self::Text { text, packed, left: value, matched: 0 },
        }
    }
}

impl Text {
    fn end(self, is_authority: bool) -> At {
        match self {
            Self::Name => At::Length(Self::Value { is_authority }),
            Self::Value { .. } => At::Field,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// In pieces of every length.
    fn passed(bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut bytes = bytes.to_owned();
        let mut authority = Authority::new();
        bytes.chunks_mut(piece).for_each(|piece| authority.pass(piece));
        bytes
    }

    #[test]
    fn a_percent_sign_in_the_name_of_the_host_is_replaced_and_nowhere_else() {
        // `:method: POST` (index 3), `:path: /a%2F`, then the authority in all four ways to write it.
        let others = b"\x83\x44\x05/a%2F";
        let indexed = b"\x41\x09a%2Fb.c%2";
        let named = b"\x40\x0a:authority\x09a%2Fb.c%2";
        let never = b"\x10\x0a:authority\x09a%2Fb.c%2";
        let unindexed = b"\x01\x09a%2Fb.c%2";
        let long = [b"\x41\x7f\x49".as_slice(), &b"%".repeat(200)].concat();
        let other_name = b"\x40\x0b:authorityx\x03%2F\x40\x09:authorit\x03%2F\x7f\x80\x01\x03%2F\x3f\xe1\x1f";
        let after = b"\x0f\x0d\x03a%b";
        let block = [&others[..], indexed, named, never, unindexed, &long, other_name, after].concat();
        let padded = [&[3][..], &[0, 0, 0, 0, 9], &block, b"%%%"].concat();
        let (begun, rest) = block.split_at(block.len() / 2);
        let sent = [
            frame(4, 0, b"%%%%%%"),
            frame(HEADERS, 4, &block),
            frame(0, 0, b"\x41\x03%2F"),
            frame(HEADERS, 4 | PADDED | PRIORITY, &padded),
            frame(HEADERS, 0, begun),
            frame(CONTINUATION, 4, rest),
            frame(0, 1, b""),
            frame(HEADERS, 4, &block),
        ];
        let mended = |bytes: &[u8]| {
            let mut text = bytes.to_owned();
            let authority = b"a%2Fb.c%2";
            for at in 0..text.len().saturating_sub(authority.len()) {
                if text[at..].starts_with(authority) {
                    text[at..at + authority.len()].copy_from_slice(b"a-2Fb.c-2");
                }
            }
            for at in 0..text.len().saturating_sub(200) {
                if text[at..].starts_with(&b"%".repeat(200)) {
                    text[at..at + 200].fill(b'-');
                }
            }
            text
        };
        // Joined, the cut block can be mended like the others.
        let whole = [frame(HEADERS, 4, &block), frame(0, 1, b""), frame(HEADERS, 4, &block)].concat();
        for piece in 1..60 {
            assert_eq!(passed(&whole, piece), mended(&whole), "in pieces of {piece}");
            let found = passed(&sent.concat(), piece);
            for at in [0, 2, 6] {
                let begin: usize = sent[..at].iter().map(Vec::len).sum();
                assert_eq!(found[begin..begin + sent[at].len()], sent[at], "frame {at} is none with fields");
            }
            let begin: usize = sent[..3].iter().map(Vec::len).sum();
            assert_eq!(found[begin..begin + sent[3].len()], mended(&sent[3]));
            let begin: usize = sent[..4].iter().map(Vec::len).sum();
            let (a, b) = (&found[begin + 9..begin + sent[4].len()], &found[begin + sent[4].len() + 9..]);
            assert_eq!([a, &b[..rest.len()]].concat(), mended(&block), "cut over two frames");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_passes_but_for_percent_signs(bytes in prop::collection::vec(any::<u8>(), 0..300), piece in 1usize..40) {
            let found = passed(&bytes, piece);
            prop_assert_eq!(&found, &passed(&bytes, bytes.len().max(1)));
            for (found, sent) in found.iter().zip(&bytes) {
                prop_assert!(found == sent || (*sent == b'%' && *found == b'-'));
            }
        }

        #[test]
        fn fields_that_are_none_pass_too(block in prop::collection::vec(any::<u8>(), 0..300)) {
            let sent = frame(HEADERS, 4, &block);
            for (found, sent) in passed(&sent, sent.len()).iter().zip(&sent) {
                prop_assert!(found == sent || (*sent == b'%' && *found == b'-'));
            }
        }
    }
}
