//! What the way to the model costs: the same request in process and over each way, in alternating blocks.
//!
//! The clients here are the cheapest there are, bytes written once and read back, so that what is measured is the
//! agent. Times are of one request at a time on one connection.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use edgefleet_agent::{
    engine::{LoadedModel, RunError},
    serving::oip::protobuf::Writer as Message,
};
use edgefleet_shared::tensor::{Datatype, Tensor};
use serde_json::json;
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// What is asked.
pub(super) struct Subject {
    pub(super) slot: &'static str,
    pub(super) input: &'static str,
    pub(super) shape: Vec<usize>,
    pub(super) model: Arc<dyn LoadedModel>,
    /// Blocks, and requests in one.
    pub(super) rounds: (usize, usize),
}

/// Takes a picture of 1 x 3 x 640 x 640 and answers at once, so that only its way is measured.
pub(super) struct Glance;
impl LoadedModel for Glance {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        let first = inputs.first().map(|x| x.data().slice(..4)).unwrap_or_default();
        let failed = |error: edgefleet_shared::tensor::TensorError| RunError::BadInput(error.to_string());
        Tensor::new("first", Datatype::Fp32, vec![1, 1], first).map_err(failed).map(|y| vec![y])
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// One way to ask, once.
type Ask = Box<dyn FnMut() -> Result<()>>;

/// Prints for each way the median and the 99th percentile, and what it adds to the call in process.
pub(super) fn measure(address: SocketAddr, socket: &Path, subject: &Subject) -> Result<()> {
    let elements: usize = subject.shape.iter().product();
    let raw = Bytes::from(vec![0u8; elements * 4]);
    let tensor = Tensor::new(subject.input, Datatype::Fp32, subject.shape.clone(), raw.clone())?;
    let model = subject.model.clone();
    let tcp = || -> Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    };
    let unix = || -> Result<Box<dyn Stream>> { Ok(Box::new(UnixStream::connect(socket)?)) };
    let memory = SharedFile::new(raw.len() + 4096)?;
    let register = json!({"key": memory.key, "offset": 0, "byte_size": raw.len() + 4096}).to_string();
    let path = format!("/v2/systemsharedmemory/region/{}/register", subject.slot);
    http(tcp()?, &path, register.into_bytes(), None)()?;

    let call = vec![tensor];
    let direct: Ask = Box::new(move || model.run(&call).map(drop).map_err(Into::into));
    let infer = format!("/v2/models/{}/infer", subject.slot);
    let (sent, header) = http_request(subject, &raw);
    let at_rest = http_in_memory(subject, raw.len());
    let mut ways: Vec<(&str, Ask)> = vec![
        ("in process", direct),
        ("HTTP, TCP", http(tcp()?, &infer, sent.clone(), Some(header))),
        ("HTTP, socket file", http(unix()?, &infer, sent, Some(header))),
        ("gRPC, TCP", grpc(tcp()?, grpc_request(subject, Some(&raw)))?),
        ("gRPC, socket file", grpc(unix()?, grpc_request(subject, Some(&raw)))?),
        ("shared memory, HTTP, TCP", http(tcp()?, &infer, at_rest.clone(), None)),
        ("shared memory, HTTP, socket file", http(unix()?, &infer, at_rest, None)),
        ("shared memory, gRPC, socket file", grpc(unix()?, grpc_request(subject, None))?),
    ];
    let (blocks, requests) = subject.rounds;
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); ways.len()];
    for _ in 0..blocks {
        for ((_, ask), times) in ways.iter_mut().zip(&mut times) {
            for _ in 0..requests {
                let began = Instant::now();
                ask()?;
                times.push(began.elapsed());
            }
        }
    }
    let at = |times: &mut Vec<Duration>, q: usize| {
        times.sort_unstable();
        times[(times.len() - 1) * q / 100].as_micros()
    };
    println!("{}: {} bytes in, {} requests each way, us", subject.slot, raw.len(), blocks * requests);
    println!("{:34} {:>8} {:>8} {:>10} {:>10}", "", "p50", "p99", "added p50", "added p99");
    let (base_50, base_99) = (at(&mut times[0], 50), at(&mut times[0], 99));
    for ((name, _), times) in ways.iter().zip(&mut times) {
        let (p50, p99) = (at(times, 50), at(times, 99));
        let (more_50, more_99) = (p50.saturating_sub(base_50), p99.saturating_sub(base_99));
        println!("{name:34} {p50:>8} {p99:>8} {more_50:>10} {more_99:>10}");
    }
    Ok(())
}

/// A file in /dev/shm, removed at the end.
struct SharedFile {
    key: String,
    path: PathBuf,
}

impl SharedFile {
    fn new(size: usize) -> Result<Self> {
        let key = format!("edgefleet-measure-{}-{size}", std::process::id());
        let path = Path::new("/dev/shm").join(&key);
        fs::write(&path, vec![0; size])?;
        Ok(Self { key, path })
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok(); // the system's own cleaning would do
    }
}

fn http_request(subject: &Subject, raw: &[u8]) -> (Vec<u8>, usize) {
    let json = json!({
        "parameters": {"binary_data_output": true},
        "inputs": [{"name": subject.input, "datatype": "FP32", "shape": subject.shape,
            "parameters": {"binary_data_size": raw.len()}}],
    })
    .to_string();
    ([json.as_bytes(), raw].concat(), json.len())
}

/// The input lies at the start of the region.
fn http_in_memory(subject: &Subject, size: usize) -> Vec<u8> {
    json!({
        "parameters": {"binary_data_output": true},
        "inputs": [{"name": subject.input, "datatype": "FP32", "shape": subject.shape,
            "parameters": {"shared_memory_region": subject.slot, "shared_memory_byte_size": size}}],
    })
    .to_string()
    .into_bytes()
}

fn http(mut stream: Box<dyn Stream>, path: &str, body: Vec<u8>, header: Option<usize>) -> Ask {
    let header = header.map(|n| format!("inference-header-content-length: {n}\r\n")).unwrap_or_default();
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n{header}\r\n");
    let request = [head.as_bytes(), &body].concat();
    let mut buffer = vec![0; 64 * 1024];
    Box::new(move || {
        stream.write_all(&request)?;
        let n = stream.read(&mut buffer)?; // small answers are one write
        let answer = &buffer[..n];
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
        Ok(())
    })
}

/// `raw`: sent, else in shared memory.
fn grpc_request(subject: &Subject, raw: Option<&[u8]>) -> Vec<u8> {
    let size = subject.shape.iter().product::<usize>() as u64 * 4;
    let mut message = Message::new();
    message.text(1, subject.slot);
    message.message(5, |input| {
        input.text(1, subject.input).text(2, "FP32");
        input.numbers(3, subject.shape.iter().map(|dim| *dim as i64));
        if raw.is_none() {
            input.entry(4, "shared_memory_region", |choice| {
                choice.element(3, subject.slot);
            });
            input.entry(4, "shared_memory_byte_size", |choice| {
                choice.choice(2, size);
            });
        }
    });
    let Some(raw) = raw else { return message.finish() };
    message.head(7, raw.len());
    [&message.finish(), raw].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The least of HTTP/2 that a call needs: literal headers, one stream at a time, windows of the other side minded.
fn grpc(mut stream: Box<dyn Stream>, message: Vec<u8>) -> Result<Ask> {
    let mut head = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/inference.GRPCInferenceService/ModelInfer"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        head.extend([0, name.len() as u8]);
        head.extend(name.bytes());
        head.push(value.len() as u8);
        head.extend(value.bytes());
    }
    let body = [&[0], &(message.len() as u32).to_be_bytes()[..], &message].concat();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    // As much as there is: this side never makes the other wait.
    stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &(0x7fff_ffffu32 - 65_535).to_be_bytes()))?;
    let mut next = 1u32;
    let mut reader = Frames { buffer: Vec::new() };
    let (mut connection, mut initial, mut largest) = (65_535i64, 65_535i64, 16_384usize);
    Ok(Box::new(move || {
        let id = next;
        next += 2;
        let mut window = initial;
        let mut sent = 0;
        let mut out = frame(HEADERS, END_HEADERS, id, &head);
        let mut is_ok = false;
        loop {
            while sent < body.len() {
                let room = usize::try_from(window.min(connection).max(0))?;
                let size = (body.len() - sent).min(room).min(largest);
                if size == 0 {
                    break;
                }
                let flags = if sent + size == body.len() { END_STREAM } else { 0 };
                out.extend(frame(DATA, flags, id, &body[sent..sent + size]));
                sent += size;
                window -= size as i64;
                connection -= size as i64;
            }
            stream.write_all(&out)?;
            out.clear();
            let (kind, flags, of, payload) = reader.next(&mut *stream)?;
            match kind {
                SETTINGS if flags & ACK == 0 => {
                    for setting in payload.as_chunks::<6>().0 {
                        let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
                        match setting[1] {
                            4 => {
                                window += i64::from(value) - initial;
                                initial = i64::from(value);
                            }
                            5 => largest = value as usize,
                            _ => {}
                        }
                    }
                    out.extend(frame(SETTINGS, ACK, 0, &[]));
                }
                PING if flags & ACK == 0 => out.extend(frame(PING, ACK, 0, &payload)),
                WINDOW_UPDATE => {
                    let more = payload.first_chunk().context("a short frame")?;
                    let more = i64::from(u32::from_be_bytes(*more));
                    if of == 0 {
                        connection += more;
                    } else if of == id {
                        window += more;
                    }
                }
                DATA if of == id => is_ok |= payload.len() > 5,
                HEADERS if of == id && flags & END_STREAM != 0 => {
                    ensure!(is_ok, "refused: {}", String::from_utf8_lossy(&payload));
                    return Ok(());
                }
                3 | 7 => anyhow::bail!("the server ended stream {of}: {payload:?}"),
                _ => {}
            }
        }
    }))
}

struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    fn next(&mut self, stream: &mut dyn Stream) -> Result<(u8, u8, u32, Vec<u8>)> {
        loop {
            if let [a, b, c, kind, flags, s0, s1, s2, s3, rest @ ..] = &self.buffer[..] {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                if let Some(payload) = rest.get(..length) {
                    let found = (*kind, *flags, u32::from_be_bytes([*s0, *s1, *s2, *s3]), payload.to_vec());
                    self.buffer.drain(..9 + length);
                    return Ok(found);
                }
            }
            let mut chunk = [0; 16 * 1024];
            let n = stream.read(&mut chunk)?;
            ensure!(n > 0, "the server has gone");
            self.buffer.extend_from_slice(&chunk[..n]);
        }
    }
}
