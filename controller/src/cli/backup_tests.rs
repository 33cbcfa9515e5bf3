use super::*;
use crate::{
    fleet::{ca::Ca, server_names::ServerNames},
    signing::setup,
    store::{
        FleetStore,
        sled_home::{SledConfig, SledStore},
    },
};
use clap::Parser;
use std::os::unix::fs::PermissionsExt;

#[derive(Parser)]
enum Command {
    Backup(BackupArgs),
    Restore(RestoreArgs),
}

async fn run(words: &[&str]) -> Result<(), BackupError> {
    match Command::try_parse_from(["edgefleet"].iter().chain(words)).unwrap() {
        Command::Backup(args) => args.run().await,
        Command::Restore(args) => args.run().await,
    }
}

#[tokio::test]
async fn a_stopped_controller_goes_to_a_file_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (data, file, phrase, new) = (path("data"), path("b.efb"), path("phrase"), path("new"));
    fs::create_dir(&data).unwrap();
    fs::write(&phrase, "correct horse battery\n").unwrap();
    let now = clock::now();
    Ca::open(Path::new(&data).join("ca"), &ServerNames::default(), now).unwrap();
    setup::open_or_create(Path::new(&data), now).unwrap();
    let (store, _) = SledStore::open(SledConfig::new(Path::new(&data).join("store"))).await.unwrap();
    store.close().await.unwrap();

    let backup = ["backup", "--data", &data, "--out", &file, "--passphrase-file", &phrase];
    run(&[&backup[..], &["--output", "json"]].concat()).await.unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(run(&backup).await, Err(BackupError::Exists { .. })));

    run(&["restore", &file, "--data", &new, "--passphrase-file", &phrase]).await.unwrap();
    let key = |data: &str| fs::read(Path::new(data).join("ca/ca.key")).unwrap();
    assert_eq!(key(&data), key(&new));
    let again = run(&["restore", &file, "--data", &new, "--passphrase-file", &phrase]).await;
    assert!(matches!(again, Err(BackupError::NotEmpty { .. })));
    let nothing =
        run(&["backup", "--data", &path("none"), "--out", &path("c"), "--passphrase-file", &phrase]).await;
    assert!(matches!(nothing, Err(BackupError::NoController { .. })));
    assert!(!dir.path().join("c").exists(), "a failure leaves no file");
}

#[test]
fn a_controller_that_runs_is_found_by_the_address_it_wrote_down() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let url = |words: &[&str]| match Command::try_parse_from(["edgefleet", "backup"].iter().chain(words))
        .unwrap()
    {
        Command::Backup(args) => args.url(),
        Command::Restore(_) => String::new(),
    };
    assert_eq!(url(&["--data", data]), DEFAULT_SERVER);
    fs::create_dir(dir.path().join("run")).unwrap();
    fs::write(dir.path().join("run/addresses.json"), r#"{"https":"127.0.0.1:4443"}"#).unwrap();
    assert_eq!(url(&["--data", data]), "https://127.0.0.1:4443");
    assert_eq!(url(&["--data", data, "--server", "https://a:1"]), "https://a:1");
    assert!(Command::try_parse_from(["edgefleet", "backup"]).is_err(), "neither folder nor server");
}
