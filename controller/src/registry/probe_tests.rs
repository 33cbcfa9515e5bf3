//! The process boundary with small shell scripts in the agent's place: crashing, hanging, lying, missing.

use super::*;
use std::{fs, os::unix::fs::PermissionsExt as _};

/// An executable that runs `script` and stands where the agent would.
pub(crate) fn agent(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join(AGENT_PROGRAM);
    let text = dir.join("script.txt");
    fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    // Copied by another process: a file this one has open for writing while another test forks cannot be run.
    let copied = std::process::Command::new("install").args(["-m", "755"]).args([&text, &path]).status();
    assert!(copied.unwrap().success());
    path
}

/// Prints a verdict about whatever manifest lies in the folder; `ok` and more JSON fields as given.
pub(crate) fn verdict_script(ok: bool, more: &str) -> String {
    format!(
        r#"
dir=$4
digest=$(sha256sum "$dir/manifest.json" | cut -d' ' -f1)
name=$(sed -n 's/^ *"name": "\(.*\)",$/\1/p' "$dir/manifest.json" | head -1)
counter=$(sed -n 's/^ *"counter": \([0-9]*\),$/\1/p' "$dir/manifest.json" | head -1)
cat <<END
{{"protocol":1,"agent_version":"0","bundle":"$name@$counter","digest":"sha256:$digest","ok":{ok}{more},
"confinement":{{"landlock":"enforced","seccomp":"enforced","limits":"enforced"}}}}
END"#
    )
}

fn bundle(dir: &Path) -> (PathBuf, BundleName, BundleDigest) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits/v1");
    let out = dir.join("bundle");
    let built = super::super::builder::build(&source, &out).unwrap();
    (out, built.name, built.digest)
}

async fn outcome(script: &str, limit: Duration) -> Result<ProbeVerdict, ProbeError> {
    let dir = tempfile::tempdir().unwrap();
    let (out, name, digest) = bundle(dir.path());
    let prober = Prober { agent: Some(agent(dir.path(), script)), library: None, limit };
    prober.probe(&out, &name, digest).await
}

#[tokio::test]
async fn verdicts_are_read_whether_they_say_yes_or_no() {
    let limit = Duration::from_secs(60);
    assert!(outcome(&verdict_script(true, ""), limit).await.unwrap().ok);
    let failure = r#","failure":{"code":"golden-mismatch","message":"no"}"#;
    let script = format!("{}\nexit 1", verdict_script(false, failure));
    let verdict = outcome(&script, limit).await.unwrap();
    assert_eq!(verdict.failure.unwrap().code.as_str(), "golden-mismatch");
}

#[tokio::test]
async fn a_child_that_misbehaves_is_a_typed_refusal() {
    let limit = Duration::from_secs(60);
    let crash = outcome("echo 'out of memory' >&2; kill -9 $$", limit).await.unwrap_err();
    assert!(matches!(&crash, ProbeError::NoVerdict { stderr, .. } if stderr == "out of memory"), "{crash}");
    assert!(matches!(outcome("echo hello", limit).await, Err(ProbeError::NoVerdict { .. })));
    assert!(matches!(outcome("exit 0", limit).await, Err(ProbeError::NoVerdict { .. })));
    let other = outcome(r#"echo '{"protocol":2}'"#, limit).await;
    assert!(matches!(other, Err(ProbeError::Protocol { found: 2, .. })));
    let long = outcome("head -c 2000000 /dev/zero", limit).await;
    assert!(matches!(long, Err(ProbeError::TooLong { .. })));
    let talkative = outcome("head -c 2000000 /dev/zero >&2; exit 3", limit).await;
    assert!(matches!(talkative, Err(ProbeError::NoVerdict { .. })));
    let liar = outcome(&format!("{}\nexit 4", verdict_script(true, "")), limit).await;
    assert!(matches!(liar, Err(ProbeError::NoVerdict { .. })));
    let another = verdict_script(true, "").replace("sha256:$digest", &format!("sha256:{}", "0".repeat(64)));
    assert!(matches!(outcome(&another, limit).await, Err(ProbeError::OtherBundle { .. })));
}

#[tokio::test]
async fn another_engine_is_tried_where_its_library_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (out, name, digest) = bundle(dir.path());
    let script = format!("[ \"$5 $6\" = '--ort-lib /opt/lib.so' ] || exit 9\n{}", verdict_script(true, ""));
    let agent = Some(agent(dir.path(), &script));
    let limit = Duration::from_secs(60);
    let with = Prober { agent: agent.clone(), library: Some("/opt/lib.so".into()), limit };
    assert!(with.probe(&out, &name, digest).await.unwrap().ok);
    let without = Prober { agent, library: None, limit };
    assert!(matches!(without.probe(&out, &name, digest).await, Err(ProbeError::NoVerdict { .. })));
}

#[tokio::test]
async fn a_hanging_child_is_stopped() {
    let outcome = outcome("exec sleep 600", Duration::from_millis(300)).await;
    assert!(matches!(outcome, Err(ProbeError::TimedOut { .. })));
}

#[tokio::test]
async fn the_child_sees_no_secrets_of_its_parent() {
    // Cargo sets CARGO_MANIFEST_DIR for this test; it stands for any variable that is not passed on.
    let script = format!("test -z \"$CARGO_MANIFEST_DIR\" || exit 9\n{}", verdict_script(true, ""));
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(outcome(&script, Duration::from_secs(60)).await.unwrap().ok);
}

#[test]
fn the_agent_is_looked_for_where_given_then_beside_then_in_the_path() {
    let (beside, path) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let find = |given| find_agent(given, Some(beside.path()), Some(path.path().as_os_str()));
    let Err(ProbeError::Missing { looked }) = find(None) else { panic!() };
    assert_eq!(looked.len(), 2);
    let in_path = agent(path.path(), "");
    assert_eq!(find(None).unwrap(), in_path);
    let next = agent(beside.path(), "");
    assert_eq!(find(None).unwrap(), next);
    assert!(find(Some(Path::new("/nowhere/agent"))).is_err(), "a given path has no fallback");
    fs::set_permissions(&next, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(find(None).unwrap(), in_path, "a file that cannot run does not count");
}
