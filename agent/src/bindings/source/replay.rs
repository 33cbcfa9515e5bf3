//! A recording at the pace it was made, or another.

use super::patiently;
use crate::{
    bindings::{
        counts::Counts,
        lines::{Line, Lines},
        pace::{Speed, Timeline},
        queue::{Item, Queue},
        recording,
    },
    serving::local::{Body, Room},
};
use std::{path::Path, sync::atomic::Ordering};
use tokio::{
    fs::File,
    io::BufReader,
    time::{Instant, sleep_until},
};

/// Bytes that time and base64 add to an input, besides a third of its own.
const AROUND: usize = 1 << 10;

/// Puts every entry into the queue when it is due. Without pauses (speed 0) it waits for the model; else what comes
/// too fast pushes older entries out, as it would have then.
///
/// # Errors
/// The file cannot be read.
pub(super) async fn play(
    path: &Path,
    speed: Speed,
    body_limit: usize,
    queue: &Queue,
    counts: &Counts,
    rooms: &impl Fn(usize) -> Result<Room, String>,
) -> Result<(), String> {
    let unread = |error: std::io::Error| format!("`{}`: {error}", path.display());
    let file = File::open(path).await.map_err(unread)?;
    let longest = body_limit.saturating_add(body_limit / 2).saturating_add(AROUND);
    let mut lines = Lines::new(BufReader::new(file), longest);
    let mut timeline = Timeline::new(speed);
    let started = Instant::now();
    while let Some((number, line)) = lines.next().await.map_err(unread)? {
        counts.received.fetch_add(1, Ordering::Relaxed);
        let entry = match line {
            Line::TooLong => Err(format!("has more than {longest} bytes")),
            Line::Text(text) => recording::parse(&text)
                .and_then(|entry| timeline.due(entry.at).map(|due| (started + due, entry.body))),
        };
        let (due, body) = match entry {
            Ok(entry) => entry,
            Err(why) => {
                counts.failed(&format!("line {number} {why}"));
                continue;
            }
        };
        sleep_until(due).await;
        let room = match rooms(body.len()) {
            Ok(room) => room,
            Err(_) if speed.is_unpaced() => patiently(rooms, body.len()).await,
            Err(_) => {
                counts.dropped(1);
                continue;
            }
        };
        let body = match body {
            Body::Json(bytes) => Body::Json(room.hold(bytes)),
            Body::Raw(bytes) => Body::Raw(room.hold(bytes)),
        };
        let item = Item { id: Some(number.to_string()), body };
        match speed.is_unpaced() {
            true => queue.push_patiently(item).await,
            false => counts.dropped(queue.push(item)),
        }
        counts.queued.store(queue.len(), Ordering::Relaxed);
    }
    Ok(())
}
