//! The files of a ZIP archive as NumPy writes them: stored or deflated, not encrypted, not spread over disks. Pure.
//!
//! Source: PKWARE APPNOTE 6.3.10, sections 4.3.12, 4.3.16 and 4.5.3 (ZIP64).

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use std::{collections::BTreeMap, io::Read as _};

/// Most bytes of all files together, unpacked.
const MAX_BYTES: u64 = 1 << 30;
const MAX_FILES: usize = 1_024;

/// Contents by name.
pub(super) fn files(archive: &Bytes) -> anyhow::Result<BTreeMap<String, Bytes>> {
    let end = archive.windows(4).rposition(|four| four == b"PK\x05\x06").context("it is no .npz file")?;
    let count = usize::from(u16_at(archive, end + 10)?);
    ensure!(count <= MAX_FILES, "it has {count} files, at most {MAX_FILES} are read");
    let mut at = u32_at(archive, end + 16)? as usize;
    ensure!(at != u32::MAX as usize && count != usize::from(u16::MAX), "it is too large an archive");
    let mut found = BTreeMap::new();
    let mut room = MAX_BYTES;
    for _ in 0..count {
        ensure!(archive.get(at..at + 4) == Some(b"PK\x01\x02"), "its directory is damaged");
        let (flags, method) = (u16_at(archive, at + 8)?, u16_at(archive, at + 10)?);
        let crc = u32_at(archive, at + 16)?;
        let (packed, size) = (u32_at(archive, at + 20)?, u32_at(archive, at + 24)?);
        let lengths = [28, 30, 32].map(|offset| u16_at(archive, at + offset).map(usize::from));
        let [name, extra, comment] = lengths;
        let (name_length, extra, comment) = (name?, extra?, comment?);
        let header = u32_at(archive, at + 42)? as usize;
        let name = archive.get(at + 46..at + 46 + name_length).context("its directory is cut off")?;
        let name = String::from_utf8_lossy(name).into_owned();
        at += 46 + name_length + extra + comment;
        ensure!(flags & 1 == 0, "`{name}` is encrypted");
        ensure!(packed != u32::MAX && size != u32::MAX, "`{name}` has 4 GB or more");
        // Its name and extra field may have other lengths there than in the directory.
        let body = header
            + 30
            + usize::from(u16_at(archive, header + 26)?)
            + usize::from(u16_at(archive, header + 28)?);
        let packed = archive.get(body..body.saturating_add(packed as usize)).context("a file is cut off")?;
        room = room
            .checked_sub(u64::from(size))
            .with_context(|| format!("it unpacks to more than {MAX_BYTES} bytes"))?;
        let content = match method {
            0 => archive.slice_ref(packed),
            8 => {
                let mut content = Vec::new();
                flate2::read::DeflateDecoder::new(packed)
                    .take(u64::from(size) + 1)
                    .read_to_end(&mut content)?;
                content.into()
            }
            other => bail!("`{name}` is packed in way {other}, which is not known"),
        };
        ensure!(content.len() == size as usize && crc32fast::hash(&content) == crc, "`{name}` is damaged");
        found.insert(name, content);
    }
    Ok(found)
}

fn u16_at(bytes: &[u8], at: usize) -> anyhow::Result<u16> {
    Ok(u16::from_le_bytes(*bytes.get(at..).and_then(|rest| rest.first_chunk()).context("it is cut off")?))
}
fn u32_at(bytes: &[u8], at: usize) -> anyhow::Result<u32> {
    Ok(u32::from_le_bytes(*bytes.get(at..).and_then(|rest| rest.first_chunk()).context("it is cut off")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `numpy.savez(f, a=np.arange(3, dtype="u1"))`, its timestamps as NumPy sets them.
    fn archive() -> Vec<u8> {
        let content = b"three bytes or so";
        let mut out = Vec::new();
        let fields = |out: &mut Vec<u8>| {
            out.extend([20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0]);
            out.extend(crc32fast::hash(content).to_le_bytes());
            out.extend((content.len() as u32).to_le_bytes().repeat(2));
            out.extend([5, 0, 0, 0]);
        };
        out.extend(b"PK\x03\x04");
        fields(&mut out);
        out.extend(b"a.npy");
        out.extend(content);
        let directory = out.len() as u32;
        out.extend(b"PK\x01\x02\x14\0");
        fields(&mut out);
        out.extend([0; 14]);
        out.extend(b"a.npy");
        let length = out.len() as u32 - directory;
        out.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
        out.extend(length.to_le_bytes());
        out.extend(directory.to_le_bytes());
        out.extend([0, 0]);
        out
    }

    #[test]
    fn a_stored_file_is_read_and_a_damaged_one_refused() {
        let good = archive();
        let found = files(&good.clone().into()).unwrap();
        assert_eq!(found["a.npy"], &b"three bytes or so"[..]);
        let at = good.windows(5).position(|w| w == b"three").unwrap();
        let mut bad = good;
        bad[at] ^= 1;
        assert!(files(&bad.into()).unwrap_err().to_string().contains("damaged"));
    }

    proptest! {
        #[test]
        fn anything_else_is_an_error_and_no_panic(at in 0usize..150, byte in any::<u8>(), cut in 0usize..200) {
            let mut bytes = archive();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(cut.max(1));
            let _ = files(&bytes.into());
        }
    }
}
