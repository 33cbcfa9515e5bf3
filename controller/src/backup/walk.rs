//! Goes through a backup from beginning to end, and says only at the end that it is whole.

use super::{
    BackupError, Passphrase, Summary,
    content::{FORMAT, Head, VERSION, read_head, read_list},
    seal::Opener,
};
use crate::{blobs::BlobInfo, store::ExportSummary};
use edgefleet_shared::digest::BlobDigest;
use std::io::{self, Read};

/// What to do with the parts. Bodies need not be read to their end.
pub(super) trait Visitor {
    /// `body`: the compressed export, of `raw_bytes` when unpacked.
    fn store(
        &mut self,
        raw_bytes: u64,
        summary: &ExportSummary,
        body: &mut dyn Read,
    ) -> Result<(), BackupError>;
    fn file(&mut self, path: &str, mode: u32, body: &mut dyn Read) -> Result<(), BackupError>;
    fn blob(&mut self, blob: BlobInfo, body: &mut dyn Read) -> Result<(), BackupError>;
}

pub(super) struct Walked {
    pub(super) summary: Summary,
    pub(super) export: ExportSummary,
    pub(super) listed: Vec<BlobInfo>,
}

/// # Errors
/// [`BackupError::Sealed`], [`BackupError::Content`], or what `visitor` says.
pub(super) fn walk(
    from: impl Read,
    passphrase: &Passphrase,
    visitor: &mut impl Visitor,
) -> Result<Walked, BackupError> {
    let mut from = Opener::begin(from, passphrase).map_err(BackupError::Sealed)?;
    let bad = |reason: String| BackupError::Content { reason };
    match read_head(&mut from).map_err(BackupError::reading)? {
        (Head::Begin { format, version, created, .. }, 0)
            if format == FORMAT && version == VERSION && created == from.created() => {}
        (Head::Begin { format, version, program, .. }, _) => {
            return Err(bad(format!(
                "it is `{format}` version {version}, made by edgefleet {program}; this program reads `{FORMAT}` \
                 version {VERSION}"
            )));
        }
        (head, _) => return Err(bad(format!("it begins with {head:?}"))),
    }
    let (mut export, mut listed) = (None, None);
    let (mut files, mut blobs) = (0, 0);
    loop {
        let (head, size) = read_head(&mut from).map_err(BackupError::reading)?;
        let mut body = (&mut from).take(size);
        match head {
            Head::Store { raw_bytes, summary } if export.is_none() => {
                visitor.store(raw_bytes, &summary, &mut body)?;
                export = Some(summary);
            }
            Head::File { path, mode } => {
                visitor.file(&path, mode, &mut body)?;
                files += 1;
            }
            Head::BlobList { count } if listed.is_none() => {
                listed = Some(read_list(&mut body, size, count).map_err(BackupError::reading)?);
            }
            Head::Blob { digest } if listed.is_some() => {
                visitor.blob(BlobInfo { digest, size }, &mut body)?;
                blobs += 1;
            }
            Head::End { files: promised, blobs: promised_blobs } => {
                if (promised, promised_blobs, size) != (files, blobs, 0) {
                    return Err(bad(format!(
                        "it promises {promised} files and {promised_blobs} blobs, and has {files} and {blobs}"
                    )));
                }
                break;
            }
            Head::Begin { .. } | Head::Store { .. } | Head::BlobList { .. } | Head::Blob { .. } => {
                return Err(bad(format!("{head:?} is out of place")));
            }
        }
        io::copy(&mut body, &mut io::sink()).map_err(BackupError::reading)?;
        if body.limit() > 0 {
            return Err(bad("it ends in the middle of a part".into()));
        }
    }
    if from.read(&mut [0]).map_err(BackupError::reading)? != 0 {
        return Err(bad("something follows its last part".into()));
    }
    let (Some(export), Some(listed)) = (export, listed) else {
        return Err(bad("it has no store or no list of blobs".into()));
    };
    let summary = Summary {
        created: from.created(),
        documents: export.documents,
        log_entries: export.log_entries,
        revision: export.revision,
        files,
        blobs_listed: listed.len() as u64,
        blobs_included: blobs,
        blob_bytes: listed.iter().map(|blob| blob.size).fold(0, u64::saturating_add),
        bytes: from.offset(),
        left_out: Vec::new(),
        damaged_blobs: Vec::new(),
    };
    Ok(Walked { summary, export, listed })
}

/// Reads a body to its end; small ones only.
pub(super) fn small(body: &mut dyn Read, limit: u64) -> Result<Vec<u8>, BackupError> {
    let mut bytes = Vec::new();
    body.take(limit + 1).read_to_end(&mut bytes).map_err(BackupError::reading)?;
    if bytes.len() as u64 > limit {
        return Err(BackupError::Content { reason: format!("a file has more than {limit} bytes") });
    }
    Ok(bytes)
}

/// The export itself, at most as long as promised.
pub(super) fn unpacked(raw_bytes: u64, body: impl Read) -> io::Result<impl Read> {
    Ok(zstd::stream::read::Decoder::new(body)?.take(raw_bytes))
}

/// Whether the blobs of a backup are all there.
pub(super) fn not_among(listed: &[BlobInfo], there: &[BlobDigest]) -> Vec<BlobInfo> {
    let there: std::collections::BTreeSet<_> = there.iter().collect();
    listed.iter().filter(|blob| !there.contains(&blob.digest)).copied().collect()
}
