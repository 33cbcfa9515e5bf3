//! What lies inside the envelope: records, one after another.
//!
//! ```text
//! 4  bytes of the head      …  the head, JSON      8  bytes of the body      …  the body
//! ```
//!
//! | head | body |
//! |---|---|
//! | `{"begin":{format,version,created,program}}` | none; first |
//! | `{"store":{raw_bytes,summary}}` | the store's export ([`crate::store::export`]), zstd |
//! | `{"file":{path,mode}}` | a file of the data folder |
//! | `{"blob_list":{count}}` | `sha256:<digest> <bytes>` and `\n` for every blob there was |
//! | `{"blob":{digest}}` | a blob, only with `--with-blobs` |
//! | `{"end":{files,blobs}}` | none; last |
//!
//! A program that meets an unknown head refuses the backup: what it does not know may be what matters.

use crate::{blobs::BlobInfo, store::ExportSummary};
use edgefleet_shared::{digest::BlobDigest, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

pub(super) const FORMAT: &str = "edgefleet-backup";
pub(super) const VERSION: u32 = 1;
/// Heads are a few hundred bytes.
const MAX_HEAD_BYTES: u32 = 64 << 10;
/// Two million blobs; the list is read into memory.
const MAX_LIST_BYTES: u64 = 256 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Head {
    Begin { format: String, version: u32, created: Timestamp, program: String },
    Store { raw_bytes: u64, summary: ExportSummary },
    File { path: String, mode: u32 },
    BlobList { count: u64 },
    Blob { digest: BlobDigest },
    End { files: u64, blobs: u64 },
}

/// Writes a record whose body has exactly `size` bytes.
///
/// # Errors
/// Those of `out` and `body`; `UnexpectedEof` if `body` is shorter. More is not looked at.
pub(super) fn write_record(out: &mut impl Write, head: &Head, size: u64, body: impl Read) -> io::Result<()> {
    let head = serde_json::to_vec(head)?;
    out.write_all(&(head.len() as u32).to_be_bytes())?; // a few hundred bytes
    out.write_all(&head)?;
    out.write_all(&size.to_be_bytes())?;
    let copied = io::copy(&mut body.take(size), out)?;
    if copied < size {
        let reason = format!("it has {copied} bytes now, {size} were there before");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
    }
    Ok(())
}

/// Reads the next head and the size of its body, which has to be read before the next call.
///
/// # Errors
/// Those of `from`; `InvalidData` for what is no record; `UnexpectedEof` at the end.
pub(super) fn read_head(from: &mut impl Read) -> io::Result<(Head, u64)> {
    let mut size = [0; 4];
    from.read_exact(&mut size)?;
    let size = u32::from_be_bytes(size);
    if size > MAX_HEAD_BYTES {
        return Err(invalid(format!("a head of {size} bytes, more than {MAX_HEAD_BYTES}")));
    }
    let mut head = vec![0; size as usize];
    from.read_exact(&mut head)?;
    let head = serde_json::from_slice(&head).map_err(|error| invalid(error.to_string()))?;
    let mut body = [0; 8];
    from.read_exact(&mut body)?;
    Ok((head, u64::from_be_bytes(body)))
}

pub(super) fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// The body of a blob list.
pub(super) fn list_text(blobs: &[BlobInfo]) -> String {
    blobs.iter().map(|blob| format!("{} {}\n", blob.digest, blob.size)).collect()
}

/// Reads a blob list of `size` bytes.
pub(super) fn read_list(from: &mut impl Read, size: u64, count: u64) -> io::Result<Vec<BlobInfo>> {
    if size > MAX_LIST_BYTES {
        return Err(invalid(format!("a list of {size} bytes, more than {MAX_LIST_BYTES}")));
    }
    let mut text = String::new();
    from.take(size).read_to_string(&mut text)?;
    let blobs: Option<Vec<_>> = text
        .lines()
        .map(|line| {
            let (digest, size) = line.split_once(' ')?;
            Some(BlobInfo { digest: digest.parse().ok()?, size: size.parse().ok()? })
        })
        .collect();
    match blobs {
        Some(blobs) if text.len() as u64 == size && blobs.len() as u64 == count => Ok(blobs),
        _ => Err(invalid("the list of blobs is not one")),
    }
}
