//! Honest and hostile files, in a folder of the test's own.

use super::*;
use crate::serving::http::tests::{Server, echo_bundle};
use edgefleet_shared::tensor::Datatype;
use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    sync::atomic::{AtomicBool, Ordering},
};

/// Whoever runs the tests.
fn me() -> Option<User> {
    let own = fs::metadata("/proc/self").unwrap();
    Some(User { uid: own.uid(), gid: Some(own.gid()) })
}

fn place(offset: u64, size: u64) -> Place {
    Place { region: "r".into(), offset, size }
}

fn regions(folder: &tempfile::TempDir) -> Regions {
    fs::write(folder.path().join("tensors"), [7; 4096]).unwrap();
    Regions::within(folder.path().into(), true)
}

/// One read and one write as a request does them.
async fn used(regions: &Regions, place: &Place) -> (Result<Bytes, OipError>, Result<(), OipError>) {
    let server = Server::start(vec![echo_bundle(Datatype::Fp32)]).await;
    let (mut share, came) = (Share::new(&server.state), Came::Socket { user: me() });
    let mut memory = regions.lend(&came, &mut share);
    let read = memory.read(place);
    let data = vec![9; read.as_ref().map_or(1, Bytes::len)];
    (read, memory.write(place, &data))
}

#[tokio::test]
async fn a_piece_of_a_file_is_read_and_written_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let regions = regions(&folder);
    regions.register("r", "/tensors", 1024, 2048, me()).unwrap();
    let (read, written) = used(&regions, &place(8, 16)).await;
    assert_eq!((read.unwrap(), written), (Bytes::from(vec![7; 16]), Ok(())));
    let file = fs::read(folder.path().join("tensors")).unwrap();
    assert_eq!((file.len(), &file[1031..1034], &file[1047..1049]), (4096, &[7, 9, 9][..], &[9, 7][..]));
    let status = RegionStatus { name: "r".into(), key: "/tensors".into(), offset: 1024, size: 2048 };
    assert_eq!(regions.status(Some("r")).unwrap(), [status]);
    assert_eq!(regions.register("r", "tensors", 0, 1, me()).unwrap_err().status, StatusCode::CONFLICT);
    regions.unregister(Some("r"));
    regions.unregister(Some("r"));
    assert_eq!(regions.status(Some("r")).unwrap_err().status, StatusCode::NOT_FOUND);
    assert!(used(&regions, &place(0, 1)).await.0.is_err());
}

#[test]
fn only_plain_names_of_plain_files_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let regions = regions(&folder);
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), [1; 4096]).unwrap();
    symlink(outside.path(), folder.path().join("link")).unwrap();
    symlink("tensors", folder.path().join("near")).unwrap();
    fs::create_dir(folder.path().join("folder")).unwrap();
    fs::write(folder.path().join("folder/inner"), [1; 64]).unwrap();
    let fifo = std::ffi::CString::new(folder.path().join("fifo").to_str().unwrap()).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: a plain system call with a string that outlives it.
    unsafe {
        assert_eq!(libc::mkfifo(fifo.as_ptr(), 0o600), 0);
    }
    for key in [
        "",
        "/",
        "//tensors",
        ".",
        "..",
        "/..",
        "../tensors",
        "folder/inner",
        "/folder/inner",
        "folder",
        "link",
        "near",
        "fifo",
        "missing",
        "tensors\0",
        &"x".repeat(300),
        &outside.path().display().to_string(),
    ] {
        let refused = regions.register("r", key, 0, 64, me());
        assert_eq!(refused.unwrap_err().status, StatusCode::BAD_REQUEST, "{key:?}");
    }
    assert!(
        regions.register("", "tensors", 0, 64, me()).is_err()
            && regions.register(&"n".repeat(257), "tensors", 0, 64, me()).is_err()
    );
    assert!(regions.status(None).unwrap().is_empty());
}

#[tokio::test]
async fn offsets_beyond_the_file_or_the_region_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let regions = regions(&folder);
    for (offset, size) in [(0, 4097), (4096, 1), (1, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX), (0, 0)] {
        assert!(regions.register("r", "tensors", offset, size, me()).is_err(), "{offset} {size}");
    }
    regions.register("r", "tensors", 96, 4000, me()).unwrap();
    for (offset, size, ok) in [
        (0, 4000, true),
        (4000, 0, true),
        (0, 4001, false),
        (4000, 1, false),
        (u64::MAX, 1, false),
        (1, u64::MAX, false),
        (u64::MAX - 90, 100, false),
    ] {
        let (read, written) = used(&regions, &place(offset, size)).await;
        assert_eq!((read.is_ok(), written.is_ok()), (ok, ok), "{offset} {size}");
    }
}

#[tokio::test]
async fn a_file_that_shrinks_costs_a_request_and_does_not_grow_again() {
    let folder = tempfile::tempdir().unwrap();
    let regions = regions(&folder);
    regions.register("r", "tensors", 0, 4096, me()).unwrap();
    let path = folder.path().join("tensors");
    File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    let (read, written) = used(&regions, &place(0, 4096)).await;
    assert!(read.unwrap_err().to_string().contains("has shrunk to 100 bytes"));
    assert!(written.is_err());
    assert_eq!(fs::metadata(&path).unwrap().len(), 100);
    assert!(used(&regions, &place(0, 100)).await.0.is_ok(), "what is still there may be used");
    // Removed: the registered file lives on under no name; a new one of that name is not it.
    fs::remove_file(&path).unwrap();
    fs::write(&path, [3; 4096]).unwrap();
    assert_eq!(used(&regions, &place(0, 100)).await.0.unwrap()[..2], [9, 9][..]);
}

/// Truncation between the look and the read: the read is short, an error, and no signal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncating_in_flight_breaks_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tensors");
    let size = 1 << 20;
    fs::write(&path, vec![7; size]).unwrap();
    let regions = Regions::within(folder.path().into(), true);
    regions.register("r", "tensors", 0, size as u64, me()).unwrap();
    let server = Server::start(vec![]).await;
    let stop = AtomicBool::new(false);
    let (mut whole, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                file.set_len(10).unwrap();
                file.set_len(size as u64).unwrap();
            }
        });
        let began = std::time::Instant::now();
        while (whole == 0 || refused == 0 || whole + refused < 500) && began.elapsed().as_secs() < 20 {
            let (mut share, came) = (Share::new(&server.state), Came::Socket { user: me() });
            let mut memory = regions.lend(&came, &mut share);
            match memory.read(&place(0, size as u64)) {
                Ok(data) => {
                    assert_eq!(data.len(), size);
                    whole += 1;
                }
                Err(OipError::Bad(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(whole > 0 && refused > 0, "{whole} whole, {refused} refused");
    assert_eq!(server.state.0.body_bytes.load(Ordering::SeqCst), 0, "nothing is left in the budget");
}

#[test]
fn other_machines_and_a_switch_keep_shared_memory_away() {
    let address = |text: &str| std::net::SocketAddr::new(text.parse().unwrap(), 1);
    let remote = Came::by_tcp(address("10.0.0.1"), address("10.0.0.2"));
    let on = Regions::new(true);
    assert_eq!(on.allow(&remote).unwrap_err().status, StatusCode::FORBIDDEN);
    for (local, peer) in
        [("127.0.0.1", "127.0.0.1"), ("10.0.0.1", "10.0.0.1"), ("::1", "::1"), ("::", "::ffff:127.0.0.1")]
    {
        assert!(on.allow(&Came::by_tcp(address(local), address(peer))).is_ok(), "{peer}");
    }
    assert!(on.allow(&Came::Socket { user: None }).is_ok());
    assert_eq!(
        Regions::new(false).allow(&Came::Socket { user: None }).unwrap_err().status,
        StatusCode::NOT_IMPLEMENTED
    );
}

#[tokio::test]
async fn a_client_gets_what_its_own_user_could_open() {
    let server = Server::start(vec![]).await;
    let folder = tempfile::tempdir().unwrap();
    let regions = regions(&folder);
    let path = folder.path().join("tensors");
    let own = me().unwrap();
    let nobody = User { uid: own.uid + 1, gid: own.gid.map(|gid| gid + 1) };
    let colleague = User { uid: own.uid + 1, ..own };
    for (mode, user, ok) in [
        (0o600, Some(own), true),
        (0o600, Some(colleague), false),
        (0o600, Some(nobody), false),
        (0o600, None, false),
        (0o660, Some(colleague), true),
        (0o660, Some(nobody), false),
        (0o606, Some(nobody), true),
        (0o606, None, true),
        (0o604, Some(nobody), false),
    ] {
        let lent = |user| Came::Socket { user };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let found = regions.register("r", "tensors", 0, 64, user);
        assert_eq!(found.is_ok(), ok, "{mode:o} {user:?}");
        assert!(found.is_ok() || found.is_err_and(|refusal| refusal.status == StatusCode::FORBIDDEN));
        // Whoever has registered it, each use is looked at.
        regions.unregister(None);
        regions.register("r", "tensors", 0, 64, me()).unwrap();
        let (mut share, came) = (Share::new(&server.state), lent(user));
        let mut memory = regions.lend(&came, &mut share);
        assert_eq!(memory.read(&place(0, 8)).is_ok(), ok, "{mode:o} {user:?}");
        assert_eq!(memory.write(&place(0, 8), &[1; 8]).is_ok(), ok, "{mode:o} {user:?}");
        regions.unregister(None);
    }
}
