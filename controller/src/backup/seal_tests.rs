use super::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const CHEAP: Cost = Cost { memory_kib: 64, passes: 1, lanes: 1 };
const FRAMED: usize = FRAME_BYTES + CHUNK_BYTES + TAG_BYTES;

fn phrase(text: &str) -> Passphrase {
    Passphrase::new(text).unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_millis(1_795_417_490_123)
}

fn content(bytes: usize) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(7);
    (0..bytes).map(|_| random.random()).collect()
}

fn seal(content: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::begin(Vec::new(), &phrase("correct horse"), CHEAP, now()).unwrap();
    sealer.write_all(content).unwrap();
    let (file, bytes) = sealer.finish().unwrap();
    assert_eq!(bytes, file.len() as u64);
    file
}

fn open_with(file: &[u8], passphrase: &str) -> Result<Vec<u8>, SealError> {
    let mut opener = Opener::begin(file, &phrase(passphrase))?;
    let mut content = Vec::new();
    match opener.read_to_end(&mut content) {
        Ok(_) => {
            assert_eq!((opener.created(), opener.offset()), (now(), file.len() as u64));
            Ok(content)
        }
        Err(error) => Err(error.downcast().unwrap()),
    }
}

fn open(file: &[u8]) -> Result<Vec<u8>, SealError> {
    open_with(file, "correct horse")
}

#[test]
fn every_length_comes_back_as_it_was() {
    for bytes in [0, 1, 1_000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 200_000] {
        let content = content(bytes);
        let file = seal(&content);
        let chunks = bytes.div_ceil(CHUNK_BYTES).max(1);
        assert_eq!(file.len(), HEADER_BYTES + bytes + chunks * (FRAME_BYTES + TAG_BYTES));
        assert!(open(&file).unwrap() == content, "{bytes} bytes");
    }
}

#[test]
fn the_same_content_never_makes_the_same_file() {
    let (one, two) = (seal(b"secret"), seal(b"secret"));
    assert_ne!(one[HEADER_BYTES..], two[HEADER_BYTES..]);
    assert!(!one.windows(6).any(|bytes| bytes == b"secret"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = seal(&content(3 * CHUNK_BYTES + 17));
    let borders = (0..=3).map(|chunk| HEADER_BYTES + chunk * FRAMED);
    let around = borders.flat_map(|at| [at - 1, at, at + 1, at + FRAME_BYTES, at + FRAME_BYTES + 9]);
    for cut in (0..HEADER_BYTES).chain(around).chain([file.len() - 1]) {
        let error = open(&file[..cut]).unwrap_err();
        if cut < 8 {
            assert!(matches!(error, SealError::NotBackup), "{cut}: {error}");
        } else {
            assert!(matches!(error, SealError::CutOff { .. }), "{cut}: {error}");
        }
    }
}

#[test]
fn a_changed_byte_is_refused_wherever_it_is() {
    let file = seal(&content(2 * CHUNK_BYTES + 500));
    let mut random = StdRng::seed_from_u64(11);
    let first_frames = HEADER_BYTES..HEADER_BYTES + FRAME_BYTES + 3;
    let places = (0..300).map(|_| random.random_range(0..file.len())).collect::<Vec<_>>();
    for at in (0..HEADER_BYTES).chain(first_frames).chain(places).chain([file.len() - 1]) {
        let mut changed = file.clone();
        changed[at] ^= 1 << (at % 8);
        let error = open(&changed).unwrap_err();
        // Damage never looks like a wrong passphrase.
        let fits = match at {
            0..8 => matches!(error, SealError::NotBackup),
            8..HEADER_BYTES => matches!(error, SealError::HeaderDamaged),
            _ => matches!(error, SealError::Damaged { .. } | SealError::CutOff { .. } | SealError::Trailing),
        };
        assert!(fits, "byte {at}: {error}");
    }
}

#[test]
fn moved_repeated_dropped_foreign_and_added_chunks_are_refused() {
    let content = content(3 * CHUNK_BYTES + 17);
    let (file, other) = (seal(&content), seal(&content));
    let (header, chunks) = file.split_at(HEADER_BYTES);
    let chunks: Vec<_> = chunks.chunks(FRAMED).collect();
    let join = |order: &[&[u8]]| [header, &order.concat()].concat();
    assert!(open(&join(&chunks)).is_ok());
    let foreign = &other[HEADER_BYTES..HEADER_BYTES + FRAMED];
    for order in [
        vec![chunks[1], chunks[0], chunks[2], chunks[3]],
        vec![chunks[0], chunks[0], chunks[2], chunks[3]],
        vec![chunks[0], chunks[2], chunks[3]],
        vec![foreign, chunks[1], chunks[2], chunks[3]],
    ] {
        let error = open(&join(&order)).unwrap_err();
        assert!(matches!(error, SealError::Damaged { .. }), "{error}");
    }
    // A chunk in the middle that claims to be the last.
    let mut early = join(&chunks[..2]);
    early[HEADER_BYTES + FRAMED] = 1;
    assert!(matches!(open(&early), Err(SealError::Damaged { chunk: 1, .. })));
    let added = [&file[..], b"x"].concat();
    assert!(matches!(open(&added), Err(SealError::Trailing)));
}

#[test]
fn a_wrong_passphrase_is_told_from_damage_and_foreign_files() {
    let file = seal(b"secret");
    assert!(matches!(open_with(&file, "correct horsf"), Err(SealError::WrongPassphrase)));
    assert!(matches!(
        open(b"PK\x03\x04 an archive, and longer than any header that could be in front of it"),
        Err(SealError::NotBackup)
    ));
    assert!(matches!(open(b""), Err(SealError::NotBackup)));
}

#[test]
fn a_header_cannot_order_more_work_than_is_bearable() {
    let mut file = seal(b"secret");
    for (at, value) in [(11, 1 << 21), (15, 17), (19, 17), (11, u32::MAX), (15, u32::MAX)] {
        let old = file.clone();
        file[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
        let crc = crc32fast::hash(&file[..CRC_AT]);
        file[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
        assert!(matches!(open(&file), Err(SealError::TooCostly { .. })), "{at}: {value}");
        file = old;
    }
    // Zeros are no parameters at all.
    file[11..23].fill(0);
    let crc = crc32fast::hash(&file[..CRC_AT]);
    file[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
    assert!(matches!(open(&file), Err(SealError::Derive { .. })));
    file[8..10].copy_from_slice(&9u16.to_be_bytes());
    let crc = crc32fast::hash(&file[..CRC_AT]);
    file[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
    assert!(matches!(open(&file), Err(SealError::UnknownVersion { found: 9 })));
}
