//! The controller is stolen: disk, broker and online key. No device activates what no publisher signed.
//!
//! Told in both set-ups: all keys on the controller (then the thief of these tests leaves the
//! publisher's key alone, with it anybody is the publisher), and publisher and trust keys elsewhere.

mod thief;

use anyhow::{Context, Result, ensure};
use edgefleet_tests::faults::{Device, Oracle, Stage, source::Source, until};
use serde_json::Value;
use std::{fs, path::Path, time::Duration};
use thief::{Thief, flipped, fresh_key, moved, sealed};

/// What a device refused: forgery, code, and its words.
type Row = (&'static str, String, String);

fn oracle() -> Result<Oracle> {
    Oracle::default().with("digits@1", "digits/v1/golden")
}

/// The thief's work of one night; the controller runs again afterwards.
async fn night<T>(stage: &mut Stage, work: impl AsyncFnOnce(&Thief) -> Result<T>) -> Result<T> {
    stage.stop().await?;
    let thief = Thief::enter(&stage.data()).await?;
    let done = work(&thief).await;
    thief.leave().await?;
    stage.start().await?;
    done
}

/// `device show`, as a person reads it.
async fn shown(stage: &Stage, device: &Device) -> Result<String> {
    stage.command(&["device", "show", &device.id]).await
}

/// The forged bundle is assigned; the device refuses it with `code` and says so, and goes on with @1.
async fn refuses_bundle(
    stage: &Stage,
    device: &Device,
    forgery: &'static str,
    counter: u64,
    code: &str,
) -> Result<Row> {
    let rollout = stage.assign(counter, 0).await?;
    let end = stage.attempt_ended(&rollout, device).await?;
    ensure!(end["state"] == "failed" && end["refusal"]["code"] == code, "{forgery}: {end}");
    let said = end["refusal"]["message"].as_str().unwrap_or_default().to_owned();
    keeps_serving(stage, device, forgery, code, &said).await?;
    Ok((forgery, code.to_owned(), said))
}

async fn keeps_serving(stage: &Stage, device: &Device, forgery: &str, code: &str, said: &str) -> Result<()> {
    ensure!(device.examine(&oracle()?).await? == "digits@1", "{forgery}: it was activated");
    until(&format!("`device show` saying why: {forgery}"), async || {
        let text = shown(stage, device).await?;
        let told = text.contains(&format!("{code}: {said}")) && text.contains("serves digits@1");
        Ok(if told { Ok(()) } else { Err(text) })
    })
    .await
}

/// The desired state the device has been sent is refused as a whole with `code`.
async fn refuses_document(
    stage: &Stage,
    device: &mut Device,
    forgery: &'static str,
    (code, words): (&str, &str),
) -> Result<Row> {
    // A new start of the agent makes the controller say again what it wants.
    device.stop().await?;
    device.start().await?;
    let refused = until(&format!("the refusal: {forgery}"), async || {
        let shown = stage.device(device).await?;
        let refused = &shown["reported"]["refused"];
        // What the device said of the forgery before is no answer.
        let said = refused["message"].as_str().is_some_and(|message| message.contains(words));
        let fresh = shown["online"] == true && refused["code"] == code && said;
        Ok(if fresh { Ok(refused.clone()) } else { Err(shown.to_string()) })
    })
    .await?;
    let said = refused["message"].as_str().context("no message")?.to_owned();
    keeps_serving(stage, device, forgery, code, &said).await?;
    Ok((forgery, code.to_owned(), said))
}

async fn attack(stage: &mut Stage) -> Result<Vec<Row>> {
    for counter in 1..=4 {
        stage.publish(Source::digits(if counter == 1 { 1 } else { 2 })?, counter).await?;
    }
    let mut device = stage.enrol("victim").await?;
    device.start().await?;
    let mut other = stage.enrol("other").await?;
    other.start().await?;
    let first = stage.assign(1, 0).await?;
    stage.committed(&first, &device).await?;
    stage.committed(&first, &other).await?;
    other.stop().await?;

    let old = night(stage, async |thief| {
        let genuine = thief.release(2).await?;
        thief.file(3, flipped(&thief.release(3).await?)?).await?;
        thief.file(11, sealed(&thief.plant(11).await?, &[&thief.controller_key()?])).await?;
        thief.file(12, sealed(&thief.plant(12).await?, &[&fresh_key()?])).await?;
        thief.file(13, moved(&genuine, &thief.plant(13).await?)?).await?;
        thief.plant(14).await?;
        thief.file(14, genuine).await?;
        thief.replace_blob(4).await?;
        thief.desired(&device.id).await
    })
    .await?;
    let mut rows = Vec::new();
    for (forgery, counter, code) in [
        ("one bit of the publisher's signature flipped", 3, "signature-invalid"),
        ("release signed by the controller's key", 11, "signature-invalid"),
        ("release signed by a key nobody knows", 12, "signature-invalid"),
        ("a genuine signature moved to another manifest", 13, "signature-invalid"),
        ("a genuine release filed under another name", 14, "release-mismatch"),
    ] {
        rows.push(refuses_bundle(stage, &device, forgery, counter, code).await?);
    }
    rows.push(refuses_damage(stage, &mut device, 4).await?);

    night(stage, async |thief| thief.send(&device.id, &old.envelope).await).await?;
    rows.push(
        refuses_document(stage, &mut device, "an old desired state again", ("generation-replayed", ""))
            .await?,
    );
    night(stage, async |thief| {
        let foreign = thief.desired(&other.id).await?;
        thief.send(&device.id, &foreign.envelope).await
    })
    .await?;
    rows.push(
        refuses_document(stage, &mut device, "the desired state of another device", ("wrong-device", ""))
            .await?,
    );
    night(stage, async |thief| {
        let current = thief.desired(&device.id).await?.desired;
        let forged = Thief::wish(&current, &thief.release(2).await?, &fresh_key()?)?;
        thief.send(&device.id, &forged).await
    })
    .await?;
    let forgery = "desired state signed by a key nobody knows";
    rows.push(
        refuses_document(stage, &mut device, forgery, ("signature-invalid", "controller signatures")).await?,
    );
    night(stage, async |thief| {
        let own = fresh_key()?;
        thief.replace_trust(&own)?;
        thief.file(15, sealed(&thief.plant(15).await?, &[&own])).await
    })
    .await?;
    stage.assign(15, 0).await?;
    let forgery = "the next trust document signed by the thief alone";
    let row = refuses_document(stage, &mut device, forgery, ("signature-invalid", "valid trust signatures"))
        .await?;
    rows.push(row);
    // Said once, not for ever: the controller sends it again after each report of an older generation.
    let log = stage.dir().join("agents/victim.log");
    let said = || anyhow::Ok(fs::read_to_string(&log)?.matches("document refused").count());
    let before = said()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = said()?;
    ensure!(after <= before + 1, "the same refusal {} times in 3 s", after - before);
    let version = stage.device(&device).await?["reported"]["trust_version"].clone();
    ensure!(version == 1, "the device took trust {version}");

    // All of it over again for a device that has just started.
    device.kill();
    device.start().await?;
    ensure!(device.examine(&oracle()?).await? == "digits@1");
    println!("{:<52} {:<20} the device's words", "forgery", "refused as");
    rows.iter().for_each(|(forgery, code, said)| println!("{forgery:<52} {code:<20} {said}"));
    Ok(rows)
}

/// Damaged content is no attack by itself: fetched anew three times, then given up. A new start of
/// the agent does not wait for the pauses in between, so the test need not either.
async fn refuses_damage(stage: &Stage, device: &mut Device, counter: u64) -> Result<Row> {
    let forgery = "other bytes under a genuine digest";
    let rollout = stage.assign(counter, 0).await?;
    let path = format!("/api/v1/rollouts/{rollout}/attempts");
    let mut tries = 0;
    let mut last = Value::Null;
    let end = loop {
        let found = until("a try", async || {
            let all = stage.get(&path).await?;
            let attempt = all["items"].as_array().into_iter().flatten().find(|a| a["device"] == *device.id);
            if let Some(ended) = attempt.filter(|a| a["state"] == "failed") {
                return Ok(Ok(ended.clone()));
            }
            let status = device.status().await?;
            let slot = &status["update"]["slots"]["digits"];
            let error = &slot["last_error"];
            let waits = slot["phase"] != "download-failed"; // else the controller is about to hear of it
            let again = waits && error["code"] == "digest-mismatch" && error["at"] != last;
            Ok(if again { Ok(error.clone()) } else { Err(status.to_string()) })
        })
        .await?;
        tries += 1;
        if found["state"] == "failed" {
            break found;
        }
        last = found["at"].clone();
        device.stop().await?;
        device.start().await?;
    };
    ensure!(end["failure"]["kind"] == "download" && end["refusal"]["code"] == "digest-mismatch", "{end}");
    ensure!(tries == 4, "given up after {tries} tries");
    let said = end["refusal"]["message"].as_str().unwrap_or_default().to_owned();
    keeps_serving(stage, device, forgery, "digest-mismatch", &said).await?;
    Ok((forgery, "digest-mismatch".into(), format!("{said} (tried {tries} times)")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_keys_on_the_controller_and_no_forgery_passes() -> Result<()> {
    let mut stage = Stage::open().await?;
    ensure!(attack(&mut stage).await?.len() == 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publisher_and_trust_keys_elsewhere_and_no_forgery_passes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let safe = tempfile::tempdir()?; // another user's, another machine's
    let keys = safe.path().join("keys");
    let made = std::process::Command::new(edgefleet_tests::faults::controller_bin()?)
        .args(["keys", "new-trust", "--offline", "--publisher", "anna", "--out"])
        .arg(&keys)
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let data = dir.path().join("controller");
    copy(&keys.join("server"), &data)?;
    let mut stage = Stage::open_in(dir).await?;
    stage.publisher = keys.join("publisher-anna.pk8");
    let mut here: Vec<_> =
        fs::read_dir(data.join("keys"))?.flatten().map(|entry| entry.file_name()).collect();
    here.sort();
    ensure!(here == ["controller.pk8"], "private keys on the server: {here:?}");
    let keys = stage.command(&["keys", "show"]).await?;
    ensure!(keys.matches("elsewhere").count() == 4, "three trust keys and a publisher's:\n{keys}");
    ensure!(attack(&mut stage).await?.len() == 10);
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name()))?,
            false => drop(fs::copy(entry.path(), to.join(entry.file_name()))?),
        }
    }
    Ok(())
}
