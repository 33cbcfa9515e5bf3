//! Where inputs come from.

mod directory;
mod mqtt;
mod replay;

use super::{
    config::{Binding, Source},
    counts::Side,
    lines::{Line, Lines},
    mqtt::Names,
    queue::{Item, Queue},
    worker::{Worker, body},
};
use crate::serving::local::Room;
use std::{sync::atomic::Ordering, time::Duration};
use tokio::io::BufReader;

/// Inputs that wait may hold this many times the largest one.
const QUEUED_BODIES: usize = 4;

/// Before memory is asked for again.
const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// Memory for an input whose source can wait for it.
async fn patiently(rooms: &impl Fn(usize) -> Result<Room, String>, bytes: usize) -> Room {
    loop {
        match rooms(bytes) {
            Ok(room) => return room,
            Err(_) => tokio::time::sleep(ROOM_PAUSE).await,
        }
    }
}

/// Feeds `worker` until the source has no more; most never end. `body_limit`: bytes of the largest input.
pub(super) async fn feed(binding: &Binding, names: &Names<'_>, worker: Worker, body_limit: usize) {
    let (counts, rooms) = (worker.counts().clone(), worker.rooms());
    let queue = Queue::new(binding.queue, body_limit.saturating_mul(QUEUED_BODIES));
    match &binding.source {
        Source::Mqtt { broker, filter, qos } => {
            let subscriber = mqtt::Subscriber {
                binding,
                filter,
                qos: (*qos).into(),
                queue: &queue,
                counts: &counts,
                room: &rooms,
            };
            tokio::join!(subscriber.listen(broker, names, body_limit), worker.drain(&queue));
        }
        Source::Directory { path, every, after, keep } => {
            let folder = directory::Folder::new(path.clone(), *after, *keep, body_limit as u64);
            directory::serve(folder, *every, worker).await;
        }
        Source::Stdin => {
            let read = async {
                let mut lines = Lines::new(BufReader::new(tokio::io::stdin()), body_limit);
                loop {
                    match lines.next().await {
                        Ok(None) => break,
                        Ok(Some((number, Line::TooLong))) => {
                            counts.received.fetch_add(1, Ordering::Relaxed);
                            counts.failed(&format!("line {number} has more than {body_limit} bytes"));
                        }
                        Ok(Some((number, Line::Text(text)))) => {
                            counts.received.fetch_add(1, Ordering::Relaxed);
                            let id = Some(number.to_string());
                            // Who writes can wait.
                            let text = patiently(&rooms, text.len()).await.hold(text);
                            queue.push_patiently(Item { id, body: body(binding, text) }).await;
                        }
                        Err(error) => {
                            counts.down(Side::Source, &format!("stdin: {error}"));
                            break;
                        }
                    }
                }
                queue.close();
            };
            tokio::join!(read, worker.drain(&queue));
        }
        Source::Replay { file, speed } => {
            let read = async {
                if let Err(trouble) = replay::play(file, *speed, body_limit, &queue, &counts, &rooms).await {
                    counts.down(Side::Source, &trouble);
                }
                queue.close();
            };
            tokio::join!(read, worker.drain(&queue));
        }
    }
}
