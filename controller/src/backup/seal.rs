//! The envelope of a backup: a header in clear, then everything else under AES-256-GCM in chunks.
//!
//! All numbers are big-endian.
//!
//! ```text
//! header, 67 bytes
//!   0   8  magic "efbackup"
//!   8   2  format version, 1
//!  10   1  key derivation, 1 = argon2id version 0x13
//!  11   4  its memory in KiB     15  4  its passes     19  4  its lanes
//!  23   8  when the backup was made, milliseconds since 1970 UTC
//!  31  16  salt
//!  47  16  key check: HMAC-SHA256 of bytes 0..47, first 16 bytes
//!  63   4  CRC-32 of bytes 0..63
//! chunk, as many as it takes
//!   0   1  1 in the last chunk, else 0
//!   1   4  bytes of content, exactly 65,536 in all but the last one
//!   5   …  ciphertext, then the tag of 16 bytes
//! ```
//!
//! argon2id gives 64 bytes: the first half is the AES key, the second the HMAC key. The nonce of a chunk is its
//! number (12 bytes, from 0); number, last byte and the whole header are authenticated with it. So a cut, a
//! changed byte, a swapped, repeated or foreign chunk and anything behind the end are noticed. The salt is new
//! for every file, and with it the key: no nonce is ever used twice under one key.
//!
//! argon2id rather than PBKDF2: people choose the passphrase, the file holds the authority's key and lies in
//! places that nobody watches. A guess costs 64 MiB of memory here, and next to nothing on a graphics card with
//! PBKDF2. The key check tells a wrong passphrase from a damaged file; it helps a guesser no more than the first
//! chunk's tag does. The CRC finds accidents in the header; against intent the header is authenticated.

use super::passphrase::Passphrase;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use edgefleet_shared::time::Timestamp;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
};
use std::io::{self, Read, Write};

const MAGIC: [u8; 8] = *b"efbackup";
const VERSION: u16 = 1;
const ARGON2ID: u8 = 1;
const KEY_CHECK_AT: usize = 47;
const CRC_AT: usize = 63;
pub(super) const HEADER_BYTES: usize = 67;
/// Content of a chunk. Overhead is 21 bytes each, 0.03 %.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
const TAG_BYTES: usize = 16;
pub(super) const FRAME_BYTES: usize = 5;

/// What one guess of the passphrase costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

impl Cost {
    /// RFC 9106's choice where memory is limited: 64 MiB, 3 passes. One lane, because ours run one after
    /// another anyway.
    pub const DEFAULT: Self = Self { memory_kib: 64 << 10, passes: 3, lanes: 1 };
    /// More than this is not spent on a header that anybody may have written.
    const MOST: Self = Self { memory_kib: 1 << 20, passes: 16, lanes: 16 };

    fn is_bearable(self) -> bool {
        self.memory_kib <= Self::MOST.memory_kib
            && self.passes <= Self::MOST.passes
            && self.lanes <= Self::MOST.lanes
    }
}

impl Default for Cost {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Why a sealed file cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("it is not a backup of edgefleet")]
    NotBackup,
    #[error("it has format version {found}, this program reads {VERSION}; use a newer program")]
    UnknownVersion { found: u16 },
    #[error("its header is damaged")]
    HeaderDamaged,
    #[error(
        "its key derivation asks for {} KiB of memory, {} passes and {} lanes, more than is acceptable",
        cost.memory_kib, cost.passes, cost.lanes
    )]
    TooCostly { cost: Cost },
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    #[error("it is damaged {} bytes after its beginning: chunk {chunk} is not as it was written", offset)]
    Damaged { chunk: u64, offset: u64 },
    #[error("it is cut off: it ends in chunk {chunk}, and none before was marked as the last")]
    CutOff { chunk: u64 },
    #[error("something follows its end")]
    Trailing,
    #[error("the key cannot be derived with {} KiB of memory: {reason}", cost.memory_kib)]
    Derive { cost: Cost, reason: String },
    #[error("the operating system has no randomness to give")]
    NoRandomness,
    #[error("it has more chunks than one key may seal")]
    TooLong,
    #[error("it cannot be read")]
    Read(#[source] io::Error),
}

struct Keys {
    seal: LessSafeKey,
    check: hmac::Key,
}

/// Slow on purpose: about 0.2 s with [`Cost::DEFAULT`].
fn derive(passphrase: &Passphrase, salt: &[u8], cost: Cost) -> Result<Keys, SealError> {
    let failed = |reason: String| SealError::Derive { cost, reason };
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(64))
        .map_err(|error| failed(error.to_string()))?;
    let mut memory: Vec<Block> = Vec::new();
    memory.try_reserve_exact(params.block_count()).map_err(|error| failed(error.to_string()))?;
    memory.resize(params.block_count(), Block::default());
    let mut out = [0; 64];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(passphrase.as_bytes(), salt, &mut out, &mut memory)
        .map_err(|error| failed(error.to_string()))?;
    let (seal, check) = out.split_at(32);
    let seal = UnboundKey::new(&AES_256_GCM, seal).map_err(|_| failed("AES refuses the key".into()))?;
    Ok(Keys { seal: LessSafeKey::new(seal), check: hmac::Key::new(hmac::HMAC_SHA256, check) })
}

fn nonce(chunk: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&chunk.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// What is authenticated with a chunk besides its content.
fn bound(header: &[u8; HEADER_BYTES], chunk: u64, last: bool) -> Aad<[u8; HEADER_BYTES + 9]> {
    let mut bytes = [0; HEADER_BYTES + 9];
    bytes[..HEADER_BYTES].copy_from_slice(header);
    bytes[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&chunk.to_be_bytes());
    bytes[HEADER_BYTES + 8] = u8::from(last);
    Aad::from(bytes)
}

/// Seals what is written into it. Without [`Sealer::finish`] the file counts as cut off.
pub(super) struct Sealer<W> {
    out: W,
    key: LessSafeKey,
    header: [u8; HEADER_BYTES],
    content: Vec<u8>,
    chunk: u64,
    written: u64,
}

impl<W: Write> Sealer<W> {
    /// Derives the key and writes the header.
    pub(super) fn begin(
        mut out: W,
        passphrase: &Passphrase,
        cost: Cost,
        now: Timestamp,
    ) -> Result<Self, io::Error> {
        if !cost.is_bearable() {
            return Err(io::Error::other(SealError::TooCostly { cost }));
        }
        let salt: [u8; 16] =
            crate::fleet::secret::random().map_err(|_| io::Error::other(SealError::NoRandomness))?;
        let keys = derive(passphrase, &salt, cost).map_err(io::Error::other)?;
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_be_bytes());
        header[10] = ARGON2ID;
        header[11..15].copy_from_slice(&cost.memory_kib.to_be_bytes());
        header[15..19].copy_from_slice(&cost.passes.to_be_bytes());
        header[19..23].copy_from_slice(&cost.lanes.to_be_bytes());
        header[23..31].copy_from_slice(&now.as_millis().to_be_bytes());
        header[31..47].copy_from_slice(&salt);
        let check = hmac::sign(&keys.check, &header[..KEY_CHECK_AT]);
        header[KEY_CHECK_AT..CRC_AT].copy_from_slice(&check.as_ref()[..16]);
        let crc = crc32fast::hash(&header[..CRC_AT]);
        header[CRC_AT..].copy_from_slice(&crc.to_be_bytes());
        out.write_all(&header)?;
        let content = Vec::with_capacity(CHUNK_BYTES + TAG_BYTES);
        Ok(Self { out, key: keys.seal, header, content, chunk: 0, written: HEADER_BYTES as u64 })
    }

    /// Writes the last chunk; returns where everything went and how many bytes that were.
    pub(super) fn finish(mut self) -> io::Result<(W, u64)> {
        self.seal(true)?;
        self.out.flush()?;
        Ok((self.out, self.written))
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        // GCM's own limit on one key is 2^32 chunks of this kind, 256 TiB.
        if self.chunk >= 1 << 32 {
            return Err(io::Error::other(SealError::TooLong));
        }
        let mut frame = [u8::from(last), 0, 0, 0, 0];
        frame[1..].copy_from_slice(&(self.content.len() as u32).to_be_bytes()); // at most CHUNK_BYTES
        let bound = bound(&self.header, self.chunk, last);
        self.key
            .seal_in_place_append_tag(nonce(self.chunk), bound, &mut self.content)
            .map_err(|_| io::Error::other("AES-GCM refused to seal a chunk"))?;
        self.out.write_all(&frame)?;
        self.out.write_all(&self.content)?;
        self.written += (FRAME_BYTES + self.content.len()) as u64;
        self.content.clear();
        self.chunk += 1;
        Ok(())
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.content.len() == CHUNK_BYTES {
            self.seal(false)?; // only now is it known not to be the last
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.content.len());
        self.content.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    /// Does nothing: chunks are cut by size alone.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what a [`Sealer`] wrote. Every byte it gives out is authenticated, but only its end says that
/// nothing is missing: use nothing before [`Read::read`] returned 0. Errors carry a [`SealError`].
pub(super) struct Opener<R> {
    from: R,
    key: LessSafeKey,
    header: [u8; HEADER_BYTES],
    content: Vec<u8>,
    at: usize,
    chunk: u64,
    offset: u64,
    ended: bool,
}

impl<R: Read> Opener<R> {
    /// Reads the header and derives the key.
    pub(super) fn begin(mut from: R, passphrase: &Passphrase) -> Result<Self, SealError> {
        let mut header = [0; HEADER_BYTES];
        let found = fill(&mut from, &mut header)?;
        if found < MAGIC.len() || header[..8] != MAGIC {
            return Err(SealError::NotBackup);
        }
        if found < HEADER_BYTES {
            return Err(SealError::CutOff { chunk: 0 });
        }
        let crc = crc32fast::hash(&header[..CRC_AT]);
        if header[CRC_AT..] != crc.to_be_bytes() {
            return Err(SealError::HeaderDamaged);
        }
        let version = u16::from_be_bytes([header[8], header[9]]);
        if version != VERSION || header[10] != ARGON2ID {
            return Err(SealError::UnknownVersion { found: version });
        }
        let number =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let cost = Cost { memory_kib: number(11), passes: number(15), lanes: number(19) };
        if !cost.is_bearable() {
            return Err(SealError::TooCostly { cost });
        }
        let keys = derive(passphrase, &header[31..47], cost)?;
        let check = hmac::sign(&keys.check, &header[..KEY_CHECK_AT]);
        let differs = check.as_ref()[..16].iter().zip(&header[KEY_CHECK_AT..CRC_AT]);
        if differs.fold(0, |differs, (a, b)| differs | (a ^ b)) != 0 {
            return Err(SealError::WrongPassphrase);
        }
        let content = Vec::with_capacity(CHUNK_BYTES + TAG_BYTES);
        let offset = HEADER_BYTES as u64;
        Ok(Self { from, key: keys.seal, header, content, at: 0, chunk: 0, offset, ended: false })
    }

    /// When the backup was made.
    pub(super) fn created(&self) -> Timestamp {
        let mut millis = [0; 8];
        millis.copy_from_slice(&self.header[23..31]);
        Timestamp::from_millis(u64::from_be_bytes(millis))
    }

    /// Bytes of the file that were read so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    fn next_chunk(&mut self) -> Result<(), SealError> {
        let (chunk, offset) = (self.chunk, self.offset);
        let damaged = SealError::Damaged { chunk, offset };
        let mut frame = [0; FRAME_BYTES];
        if fill(&mut self.from, &mut frame)? < FRAME_BYTES {
            return Err(SealError::CutOff { chunk });
        }
        let last = match frame[0] {
            0 => false,
            1 => true,
            _ => return Err(damaged),
        };
        let size = u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]) as usize;
        if size > CHUNK_BYTES || (!last && size != CHUNK_BYTES) {
            return Err(damaged);
        }
        self.content.clear();
        self.content.resize(size + TAG_BYTES, 0);
        if fill(&mut self.from, &mut self.content)? < size + TAG_BYTES {
            return Err(SealError::CutOff { chunk });
        }
        let bound = bound(&self.header, chunk, last);
        if self.key.open_in_place(nonce(chunk), bound, &mut self.content).is_err() {
            self.content.clear();
            return Err(damaged);
        }
        self.content.truncate(size);
        self.at = 0;
        self.chunk += 1;
        self.offset += (FRAME_BYTES + size + TAG_BYTES) as u64;
        self.ended = last;
        if last && fill(&mut self.from, &mut [0])? != 0 {
            return Err(SealError::Trailing);
        }
        Ok(())
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.content.len() {
            if self.ended || out.is_empty() {
                return Ok(0);
            }
            self.next_chunk().map_err(io::Error::other)?;
        }
        let taken = out.len().min(self.content.len() - self.at);
        out[..taken].copy_from_slice(&self.content[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

/// Reads until `out` is full or the input ends; says how many bytes came.
fn fill(from: &mut impl Read, out: &mut [u8]) -> Result<usize, SealError> {
    let mut filled = 0;
    while filled < out.len() {
        match from.read(&mut out[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SealError::Read(error)),
        }
    }
    Ok(filled)
}

#[cfg(test)]
#[path = "seal_tests.rs"]
mod tests;
