//! Lines of bounded length: a longer one is passed over without being held.

use bytes::Bytes;
use std::io;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// One line of a source.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Without its end; never empty.
    Text(Bytes),
    /// It has more bytes than are allowed.
    TooLong,
}

/// Reads lines that are not blank, with their number from 1.
pub struct Lines<R> {
    from: R,
    limit: usize,
    number: u64,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    /// `limit`: bytes of the longest line.
    pub fn new(from: R, limit: usize) -> Self {
        Self { from, limit, number: 0 }
    }

    /// `None` at the end.
    ///
    /// # Errors
    /// As reading.
    pub async fn next(&mut self) -> io::Result<Option<(u64, Line)>> {
        loop {
            let mut line: Vec<u8> = Vec::new();
            let (mut length, mut ended) = (0usize, false);
            while !ended {
                let piece = self.from.fill_buf().await?;
                if piece.is_empty() {
                    break;
                }
                let end = piece.iter().position(|byte| *byte == b'\n');
                let text = &piece[..end.unwrap_or(piece.len())];
                length = length.saturating_add(text.len());
                if length <= self.limit {
                    line.extend_from_slice(text);
                } else {
                    line = Vec::new();
                }
                ended = end.is_some();
                let taken = text.len() + usize::from(ended);
                self.from.consume(taken);
            }
            if length == 0 && !ended {
                return Ok(None);
            }
            self.number += 1;
            if length > self.limit {
                return Ok(Some((self.number, Line::TooLong)));
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some((self.number, Line::Text(line.into()))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::BufReader;

    #[tokio::test]
    async fn lines_come_numbered_and_long_ones_are_passed_over() {
        let text = b"one\n\n  \r\n0123456789a\n0123456789\r\nlast";
        for capacity in [1, 4, 64] {
            let mut lines = Lines::new(BufReader::with_capacity(capacity, &text[..]), 11);
            let mut found = Vec::new();
            while let Some((number, line)) = lines.next().await.unwrap() {
                found.push((number, line));
            }
            let text = |text: &'static [u8]| Line::Text(Bytes::from_static(text));
            let wanted = vec![
                (1, text(b"one")),
                (4, text(b"0123456789a")),
                (5, text(b"0123456789\r")),
                (6, text(b"last")),
            ];
            assert_eq!(found, wanted, "{capacity}");
            let mut lines = Lines::new(BufReader::with_capacity(capacity, &b"0123456789ab\nx"[..]), 11);
            assert_eq!(lines.next().await.unwrap(), Some((1, Line::TooLong)));
            assert_eq!(lines.next().await.unwrap(), Some((2, Line::Text(Bytes::from_static(b"x")))));
            assert_eq!(lines.next().await.unwrap(), None);
        }
    }
}
