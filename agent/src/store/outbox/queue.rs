//! The queue itself: what is kept, what is staged, what goes when there is no room.
//!
//! Contents live on disk; memory holds an index of a few dozen bytes per record.

use super::{
    Bounds, OpenOutcome, OutboxError,
    codec::{self, MAX_RECORD_BYTES},
    home::{Found, Home, Meta, Opened, read_marker},
    merge::{self, SPANS},
};
use edgefleet_shared::{
    ids::BootId,
    telemetry::{Ack, Record, RecordBody},
};
use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Appending stops when less than this share of the disk is left, or [`RESERVE_BYTES`] on large disks.
const RESERVE_SHARE: u64 = 20;
const RESERVE_BYTES: u64 = 256 << 20;
/// A store that did not open is tried again this often.
const REOPEN_EVERY: Duration = Duration::from_secs(30);
/// Folder size, as a multiple of the byte bound, above which a drained store is made anew: sled never
/// gives space back.
const SHRINK_ABOVE: u64 = 4;

struct Entry {
    position: u64,
    boot: BootId,
    seq: u64,
    bytes: u32,
    /// A terminal report goes last when room is needed.
    terminal: bool,
    /// For a `dropped` record: how many it stands for.
    stands_for: u64,
    /// Should not wait for company.
    urgent: bool,
    /// What it may be merged with, and when it began.
    merge: Option<(u64, u64)>,
}

fn is_urgent(body: &RecordBody) -> bool {
    match body {
        RecordBody::Window(w) => {
            let failed = !w.counts.errors.is_empty() || w.counts.rejected > 0 || w.first_bad_ms.is_some();
            failed || w.agreement.is_some() || w.exceed.iter().any(|exceed| exceed.x > 0)
        }
        RecordBody::Profile(_) | RecordBody::Labels(_) => false,
        RecordBody::Terminal(_) | RecordBody::Dropped { .. } | RecordBody::Unknown => true,
    }
}

/// The `dropped` record that still grows: not yet handed out, so its number may change its content.
struct Growing {
    position: u64,
    records: u64,
}

pub(super) struct Queue {
    dir: PathBuf,
    boot: BootId,
    bounds: Bounds,
    home: Option<Home>,
    tried: Instant,
    index: VecDeque<Entry>,
    bytes: u64,
    urgent: usize,
    last: u64,
    next_seq: u64,
    batch: sled::Batch,
    staged: usize,
    dirty: bool,
    growing: Option<Growing>,
    /// Losses not yet written into a `dropped` record.
    untold: u64,
    untold_why: String,
    lost: u64,
    /// The highest place of a record that may be merged and was handed out: its number means one content.
    handed: u64,
    /// The highest place that is on disk.
    stored: u64,
    /// The place up to which merging was tried last, by span.
    tried_upto: [u64; SPANS.len()],
    merged: u64,
    /// Sums that the next commit writes: what is on disk under their places is one part of them.
    sums: BTreeMap<u64, Vec<u8>>,
}

impl Queue {
    pub(super) fn open(dir: &Path, boot: BootId, bounds: Bounds) -> Result<(Self, OpenOutcome), OutboxError> {
        let mut queue = Self {
            dir: dir.to_owned(),
            boot,
            bounds,
            home: None,
            tried: Instant::now(),
            index: VecDeque::new(),
            bytes: 0,
            urgent: 0,
            last: 0,
            next_seq: 1,
            batch: sled::Batch::default(),
            staged: 0,
            dirty: false,
            growing: None,
            untold: 0,
            untold_why: String::new(),
            lost: 0,
            handed: 0,
            stored: 0,
            tried_upto: [0; SPANS.len()],
            merged: 0,
            sums: BTreeMap::new(),
        };
        match Home::open(dir) {
            Ok(opened) => {
                let outcome = queue.take_in(opened);
                queue.tell_losses();
                Ok((queue, outcome))
            }
            Err(e @ OutboxError::InUse { .. }) => Err(e),
            Err(e) => Ok((queue, OpenOutcome::Unavailable { reason: e.to_string() })),
        }
    }

    /// Makes the index from what the store holds; counts what it should hold and does not.
    fn take_in(&mut self, opened: Opened) -> OpenOutcome {
        let Opened { home, meta, found, mended } = opened;
        let marker = read_marker(&self.dir);
        let fresh = meta.is_none() && marker.is_none() && found.is_empty();
        let present = found.len() as u64;
        self.index.clear();
        (self.bytes, self.urgent) = (0, 0);
        let mut damaged = 0;
        for Found { position, bytes } in found {
            self.last = self.last.max(position);
            match codec::decode(&bytes) {
                Some(record) => self.push(position, &record, bytes.len()),
                None => {
                    damaged += 1;
                    self.batch.remove(&codec::key(position));
                    self.dirty = true;
                }
            }
        }
        // Inside the store count and records change together: a difference is damage. The marker may
        // lag by one commit, so it only tells of a store that went back in time or was emptied.
        let inside = meta.unwrap_or_default();
        let missing = match (meta, marker) {
            (Some(meta), Some(marker)) if marker.last > meta.last => {
                (marker.last - meta.last).min(marker.live) + inside.live.saturating_sub(present)
            }
            (Some(meta), _) => meta.live.saturating_sub(present),
            (None, Some(marker)) => marker.live.saturating_sub(present),
            (None, None) => 0,
        };
        self.last = self.last.max(inside.last).max(marker.unwrap_or_default().last);
        // Of a damaged or older store it is not known: then all of it may have been handed out.
        self.handed = self.handed.max(meta.and_then(|meta| meta.handed).unwrap_or(self.last));
        self.stored = self.last;
        let lost = missing + damaged;
        self.home = Some(home);
        if fresh && mended.is_none() {
            return OpenOutcome::New;
        }
        if lost == 0 && mended.is_none() {
            return OpenOutcome::Kept { records: self.index.len() };
        }
        let how = mended.unwrap_or_else(|| "its contents did not add up".into());
        self.lose(lost, &format!("outbox damaged: {how}"));
        OpenOutcome::Recovered { kept: self.index.len(), lost, how }
    }

    fn push(&mut self, position: u64, record: &Record, bytes: usize) {
        let stands_for = if let RecordBody::Dropped { records, .. } = record.body { records } else { 0 };
        self.bytes += bytes as u64;
        let urgent = is_urgent(&record.body);
        self.urgent += usize::from(urgent);
        self.index.push_back(Entry {
            position,
            boot: record.boot,
            seq: record.seq,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            terminal: matches!(record.body, RecordBody::Terminal(_)),
            stands_for,
            urgent,
            merge: merge::key(record),
        });
    }

    /// Numbers a record and puts it into the next group.
    pub(super) fn stage(&mut self, body: RecordBody) -> Result<u64, OutboxError> {
        let result = self.try_stage(body);
        if result.is_err() {
            self.lose(1, "the outbox could not store them");
        }
        result
    }

    fn try_stage(&mut self, body: RecordBody) -> Result<u64, OutboxError> {
        self.ensure_open()?;
        self.check_disk()?;
        self.tell_losses();
        let record = Record { boot: self.boot, seq: self.next_seq, body };
        let bytes = codec::encode(&record);
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(OutboxError::RecordTooLarge { bytes: bytes.len(), limit: MAX_RECORD_BYTES });
        }
        if self.make_room(bytes.len() as u64) > 0 {
            self.tell_losses(); // before this record, which so stays the newest
        }
        // Telling may have taken the number.
        let record = Record { seq: self.next_seq, ..record };
        self.insert(&record);
        Ok(record.seq)
    }

    fn insert(&mut self, record: &Record) -> u64 {
        let bytes = codec::encode(record);
        self.last += 1;
        self.next_seq += 1;
        self.push(self.last, record, bytes.len());
        self.batch.insert(&codec::key(self.last), bytes);
        self.staged += 1;
        self.dirty = true;
        self.last
    }

    /// Drops the oldest until `bytes` more and two records fit; returns how many went.
    fn make_room(&mut self, bytes: u64) -> u64 {
        let mut gone = 0;
        while self.is_full(bytes) {
            if self.condense() {
                continue;
            }
            let growing = self.growing.as_ref().map(|growing| growing.position);
            let oldest = |terminals: bool| {
                self.index.iter().position(|e| e.terminal == terminals && Some(e.position) != growing)
            };
            let Some(entry) = oldest(false).or_else(|| oldest(true)).and_then(|at| self.index.remove(at))
            else {
                break; // a single record larger than the bound
            };
            self.bytes -= u64::from(entry.bytes);
            self.urgent -= usize::from(entry.urgent);
            self.batch.remove(&codec::key(entry.position));
            self.dirty = true;
            let records = entry.stands_for.max(1);
            self.untold += records;
            // What a dropped `dropped` record stands for was counted when it was lost.
            self.lost += if entry.stands_for > 0 { 0 } else { 1 };
            gone += 1;
        }
        if gone > 0 {
            self.untold_why = "the outbox was full, the oldest went".into();
        }
        gone
    }

    fn is_full(&self, bytes: u64) -> bool {
        self.index.len() + 2 > self.bounds.records.max(3) || self.bytes + bytes > self.bounds.bytes
    }

    /// Merges what may be merged, by the hour first, and so that the work pays: not again before a sixteenth of the
    /// records is new. Whether anything became less.
    fn condense(&mut self) -> bool {
        for (number, span) in SPANS.into_iter().enumerate() {
            let fresh = self.stored.saturating_sub(self.tried_upto[number]);
            if fresh < (self.bounds.records as u64 / 16).max(2) {
                continue;
            }
            self.tried_upto[number] = self.stored;
            if self.condense_within(span) {
                return true;
            }
        }
        false
    }

    /// See [`super::Outbox::thin_out`].
    pub(super) fn thin_out(&mut self, most: usize) -> u64 {
        let before = self.merged;
        for span in SPANS {
            if span == SPANS[0] || self.index.len() > most {
                self.condense_within(span);
            }
        }
        self.merged - before
    }

    fn condense_within(&mut self, span: u64) -> bool {
        let mut groups: BTreeMap<(u64, u64), Vec<u64>> = BTreeMap::new();
        for entry in self.index.iter().filter(|e| e.position > self.handed && e.position <= self.stored) {
            if let Some((subject, start)) = entry.merge {
                groups.entry((subject, start / span)).or_default().push(entry.position);
            }
        }
        let before = self.index.len();
        for positions in groups.into_values().filter(|positions| positions.len() > 1) {
            self.merge_group(&positions);
        }
        self.merged += (before - self.index.len()) as u64;
        self.index.len() < before
    }

    /// One record under the number of the first. Its change and the removal of the others are one write of the
    /// store: a kill leaves all of them or the sum.
    fn merge_group(&mut self, positions: &[u64]) {
        let Some(home) = &self.home else { return };
        let mut sum: Option<(u64, Record)> = None;
        let mut parts = Vec::new();
        for position in positions {
            let record = match self.sums.get(position) {
                Some(sum) => codec::decode(sum),
                None => {
                    home.get(&codec::key(*position)).ok().flatten().and_then(|bytes| codec::decode(&bytes))
                }
            };
            let Some(record) = record else { continue };
            sum = match sum.take() {
                None => Some((*position, record)),
                Some((first, so_far)) => match merge::merge(&so_far.body, &record.body) {
                    Some(body) => {
                        parts.push(*position);
                        Some((first, Record { body, ..so_far }))
                    }
                    None => Some((first, so_far)),
                },
            };
        }
        let Some((first, record)) = sum.filter(|_| !parts.is_empty()) else { return };
        let bytes = codec::encode(&record);
        let Some(entry) = self.index.iter_mut().find(|entry| entry.position == first) else { return };
        if bytes.len() > MAX_RECORD_BYTES {
            return;
        }
        self.bytes = self.bytes - u64::from(entry.bytes) + bytes.len() as u64;
        entry.bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.urgent -= usize::from(entry.urgent);
        entry.urgent = is_urgent(&record.body);
        self.urgent += usize::from(entry.urgent);
        self.batch.insert(&codec::key(first), bytes.clone());
        self.sums.insert(first, bytes);
        self.dirty = true;
        self.forget(|entry| parts.binary_search(&entry.position).is_ok());
    }

    fn lose(&mut self, records: u64, why: &str) {
        self.untold += records;
        self.lost += records;
        self.untold_why = why.to_owned();
    }

    /// Writes losses into a `dropped` record: the growing one, or a new one.
    fn tell_losses(&mut self) {
        if self.untold == 0 || self.home.is_none() {
            return;
        }
        let reason = self.untold_why.clone();
        let told = std::mem::take(&mut self.untold);
        if let Some(growing) = &mut self.growing {
            let position = growing.position;
            if let Some(entry) = self.index.iter_mut().find(|entry| entry.position == position) {
                growing.records += told;
                let body = RecordBody::Dropped { records: growing.records, reason };
                let bytes = codec::encode(&Record { boot: entry.boot, seq: entry.seq, body });
                self.bytes = self.bytes - u64::from(entry.bytes) + bytes.len() as u64;
                entry.bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                entry.stands_for = growing.records;
                self.batch.insert(&codec::key(position), bytes);
                self.dirty = true;
                return;
            }
        }
        let body = RecordBody::Dropped { records: told, reason };
        let position = self.insert(&Record { boot: self.boot, seq: self.next_seq, body });
        self.growing = Some(Growing { position, records: told });
    }

    /// Makes everything staged durable.
    pub(super) fn commit(&mut self) -> Result<(), OutboxError> {
        if !self.dirty {
            return Ok(());
        }
        let meta = Meta { last: self.last, live: self.index.len() as u64, handed: Some(self.handed) };
        let batch = std::mem::take(&mut self.batch);
        self.sums.clear();
        let staged = std::mem::take(&mut self.staged);
        self.dirty = false;
        let Some(home) = &self.home else {
            return Err(self.broken("it is not open".into()));
        };
        match home.write(batch, meta) {
            Ok(()) => {
                self.stored = meta.last;
                self.shrink();
                Ok(())
            }
            Err(reason) => {
                // What the disk has of this group is unknown: read it again before anything else.
                // `take_in` finds what is missing against the marker, so only this group is added.
                self.home = None;
                self.growing = None;
                self.index.clear();
                (self.bytes, self.urgent) = (0, 0);
                self.tried = Instant::now();
                self.lose(staged as u64, "the outbox could not store them");
                tracing::error!(reason, path = %self.dir.display(), "the telemetry outbox failed");
                Err(self.broken(reason))
            }
        }
    }

    fn broken(&self, reason: String) -> OutboxError {
        OutboxError::Store { path: self.dir.clone(), reason }
    }

    fn ensure_open(&mut self) -> Result<(), OutboxError> {
        if self.home.is_some() {
            return Ok(());
        }
        if self.tried.elapsed() < REOPEN_EVERY {
            return Err(self.broken("it is closed after a failure and will be tried again".into()));
        }
        self.tried = Instant::now();
        let opened = Home::open(&self.dir)?;
        let outcome = self.take_in(opened);
        tracing::info!(?outcome, "the telemetry outbox works again");
        Ok(())
    }

    fn check_disk(&self) -> Result<(), OutboxError> {
        let Ok(stats) = fs4::statvfs(&self.dir) else { return Ok(()) };
        let reserve = (stats.total_space() / RESERVE_SHARE).min(RESERVE_BYTES);
        match stats.available_space() {
            available if available < reserve => {
                Err(OutboxError::DiskFull { path: self.dir.clone(), available })
            }
            _ => Ok(()),
        }
    }

    /// A drained store that grew too large is made anew.
    fn shrink(&mut self) {
        let too_large = |home: &Home| home.size_on_disk() > self.bounds.bytes.saturating_mul(SHRINK_ABOVE);
        if !self.index.is_empty() || !self.home.as_ref().is_some_and(too_large) {
            return;
        }
        self.home = None; // lets go of its files
        let done = fs::remove_dir_all(&self.dir).map_err(|e| self.broken(e.to_string()));
        match done.and_then(|()| Home::open(&self.dir)) {
            Ok(opened) => {
                self.home = Some(opened.home);
                // So that the marker and the store agree on where the numbers are.
                self.dirty = true;
                self.batch = sled::Batch::default();
            }
            Err(error) => tracing::error!(%error, "the drained outbox could not be made anew"),
        }
    }

    /// The oldest records. A record that does not read back as written is lost and counted.
    /// `essential`: terminal reports and losses alone.
    pub(super) fn peek(&mut self, bytes: usize, records: usize, essential: bool) -> Vec<Record> {
        let mut handed = self.handed;
        let mut out = Vec::new();
        let mut total = 0usize;
        let mut damaged = Vec::new();
        let Some(home) = &self.home else { return out };
        let wanted = |entry: &&Entry| !essential || entry.terminal || entry.stands_for > 0;
        for entry in self.index.iter().filter(wanted) {
            if out.len() >= records || (total + entry.bytes as usize > bytes && !out.is_empty()) {
                break;
            }
            let found = home.get(&codec::key(entry.position)).ok().flatten();
            match found.and_then(|bytes| codec::decode(&bytes)) {
                Some(record) => {
                    total += entry.bytes as usize;
                    if self.growing.as_ref().is_some_and(|growing| growing.position == entry.position) {
                        self.growing = None; // once handed out, a number means one content
                    }
                    if entry.merge.is_some() {
                        handed = handed.max(entry.position);
                    }
                    out.push(record);
                }
                None => damaged.push(entry.position),
            }
        }
        if !damaged.is_empty() {
            self.forget(|entry| damaged.contains(&entry.position));
            self.lose(damaged.len() as u64, "outbox damaged: records did not read back");
            self.tell_losses();
        }
        if handed > self.handed {
            // Before anyone has them: after a kill they must not be merged under numbers that were sent.
            self.handed = handed;
            self.dirty = true;
            if self.commit().is_err() {
                out.clear();
            }
        }
        out
    }

    /// Forgets what `ack` covers; made durable with the next group (a repeat is harmless).
    pub(super) fn ack(&mut self, ack: &Ack) -> usize {
        let growing = self.growing.as_ref().map(|growing| growing.position);
        self.forget(|entry| {
            // What was never handed out cannot have been stored.
            Some(entry.position) != growing
                && ack.boots.iter().any(|boot| boot.boot == entry.boot && boot.covers(entry.seq))
        })
    }

    fn forget(&mut self, which: impl Fn(&Entry) -> bool) -> usize {
        let before = self.index.len();
        let (batch, bytes, urgent) = (&mut self.batch, &mut self.bytes, &mut self.urgent);
        self.index.retain(|entry| {
            let gone = which(entry);
            if gone {
                batch.remove(&codec::key(entry.position));
                *bytes -= u64::from(entry.bytes);
                *urgent -= usize::from(entry.urgent);
            }
            !gone
        });
        let gone = before - self.index.len();
        self.dirty |= gone > 0;
        gone
    }

    pub(super) fn staged(&self) -> usize {
        self.staged
    }
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
    pub(super) fn urgent(&self) -> usize {
        self.urgent
    }
    pub(super) fn merged(&self) -> u64 {
        self.merged
    }
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}
