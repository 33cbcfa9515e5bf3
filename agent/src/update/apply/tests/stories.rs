//! What a device does with each thing it is told.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_signed_bundle_is_fetched_tested_served_and_committed() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 700_000);
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    let report = rig.until_phase("digits", 1, Phase::Committed).await;
    assert_eq!((report.generation, report.trust_version, report.refused), (1, 1, None));
    assert_eq!(rig.serving("digits"), Some(1));
    assert_eq!(rig.terminals(), [(Phase::Committed, 1)]);
    let terminal = rig.outside.terminals.lock()[0].clone();
    assert_eq!(terminal.fetched_bytes, one.bytes, "every byte once");
    assert!((60_000..120_000).contains(&terminal.took_ms), "{} ms with probation", terminal.took_ms);
    assert_eq!(*rig.outside.probes.lock(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_years_off_stops_no_update_but_a_good_one_notices_an_old_document() {
    const YEAR: u32 = 365;
    let clocks: [fn() -> Timestamp; 3] =
        [|| Timestamp::EPOCH, || today() - DAY * (2 * YEAR), || today() + DAY * (10 * YEAR)];
    for clock in clocks {
        let mut rig = Rig::new();
        let one = rig.publish(1, 50_000);
        rig.clock = clock;
        rig.start().await;
        rig.desire(1, &[("digits", &one.assigned)]).await;
        rig.until_phase("digits", 1, Phase::Committed).await;
        assert_eq!(rig.serving("digits"), Some(1), "at {}", clock());
    }
    let mut rig = Rig::new();
    let one = rig.publish(1, 50_000);
    rig.clock = || today() + DAY * 30; // believed, and beyond the document's ten days
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    let expired = |report: &DeviceReport| {
        report.refused.as_ref().is_some_and(|refusal| refusal.code == RefusalCode::Expired)
    };
    rig.until("the refusal", expired).await;
    assert_eq!(rig.serving("digits"), None);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_bundle_serves_before_any_network() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 50_000);
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.kill().await;
    *rig.outside.down.lock() = true;
    rig.start().await;
    assert_eq!(rig.serving("digits"), Some(1), "at the moment start() returns");
}

#[tokio::test(start_paused = true)]
async fn going_back_to_the_bundle_before_asks_the_network_for_nothing() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 90_000), rig.publish(2, 90_000));
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    rig.until_phase("digits", 2, Phase::Committed).await;
    let asked = rig.outside.asked.lock().len();
    let back = Assigned { attempt: AttemptId { number: 9, ..one.assigned.attempt.clone() }, ..one.assigned };
    rig.desire(3, &[("digits", &back)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    assert_eq!((rig.serving("digits"), rig.outside.asked.lock().len()), (Some(1), asked));
    assert_eq!(*rig.outside.probes.lock(), 2);
    let serving = rig.outside.serving.lock().values().next().unwrap().1.number;
    assert_eq!(serving, 9, "the server knows the attempt it measures for");
}

#[tokio::test(start_paused = true)]
async fn what_the_probe_refuses_is_not_served_and_not_tried_again() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 90_000), rig.publish(2, 90_000));
    rig.outside.refused.lock().insert(two.digest);
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    let report = rig.until_phase("digits", 2, Phase::PreflightFailed).await;
    let error = report.slots.values().next().unwrap().last_error.clone().unwrap();
    assert_eq!((error.code, error.generation), (RefusalCode::GoldenMismatch, Some(2)));
    assert!(error.message.contains("0.7 instead of 0.1"));
    assert_eq!(rig.serving("digits"), Some(1));
    rig.kill().await;
    rig.start().await;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    rig.desire(3, &[("digits", &two.assigned)]).await;
    rig.until("generation 3", |r| r.generation == 3).await;
    assert_eq!(*rig.outside.probes.lock(), 2, "not probed again");
    assert_eq!(rig.terminals(), [(Phase::Committed, 1), (Phase::PreflightFailed, 2)]);
    assert!(!rig.home.join("data/bundles/blobs/sha256").join(BlobDigest::of(&two.model).to_hex()).exists());
}

#[tokio::test(start_paused = true)]
async fn a_release_that_no_publisher_signed_is_refused_before_its_manifest_is_fetched() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 90_000);
    let forged = {
        let thief = Signers::new();
        let raw = thief.release(2, &one.manifest);
        rig.outside.objects.lock().insert(FetchObject::Blob(BlobDigest::of(&raw)), raw.clone());
        rig.signers.assigned(&raw, 2, 2)
    };
    rig.start().await;
    rig.desire(1, &[("digits", &forged)]).await;
    let report = rig.until_phase("digits", 2, Phase::VerifyFailed).await;
    let error = report.slots.values().next().unwrap().last_error.clone().unwrap();
    assert_eq!(error.code, RefusalCode::SignatureInvalid);
    assert_eq!(rig.outside.asked.lock().len(), 1, "only the release was asked for");
    assert_eq!(rig.serving("digits"), None);
}

#[tokio::test(start_paused = true)]
async fn a_model_in_the_slot_of_an_engine_is_refused_before_its_manifest_is_fetched() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 90_000);
    rig.start().await;
    rig.desire(1, &[("engine/onnxruntime", &one.assigned)]).await;
    let report = rig.until_phase("engine/onnxruntime", 1, Phase::Incompatible).await;
    let error = report.slots.values().next().unwrap().last_error.clone().unwrap();
    assert_eq!(error.code, RefusalCode::NoArtifact);
    assert!(error.message.contains("`digits@1` does not belong into slot"), "{}", error.message);
    assert_eq!(rig.outside.asked.lock().len(), 1, "only the release was asked for");
}

#[tokio::test(start_paused = true)]
async fn a_sick_bundle_goes_back_without_the_network() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 90_000), rig.publish(2, 90_000));
    rig.outside.sick.lock().insert(two.assigned.bundle.clone());
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    rig.until("2 on probation or beyond", |_| rig.serving("digits") == Some(2)).await;
    *rig.outside.down.lock() = true;
    let report = rig.until_phase("digits", 2, Phase::RolledBackLocal).await;
    assert_eq!(report.slots.values().next().unwrap().active.as_ref().unwrap().bundle.counter, 1);
    assert_eq!(rig.serving("digits"), Some(1));
    assert_eq!(rig.terminals().last(), Some(&(Phase::RolledBackLocal, 2)));
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_does_not_load_leaves_the_former_serving() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 90_000), rig.publish(2, 90_000));
    rig.outside.unloadable.lock().insert(two.digest);
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    rig.until_phase("digits", 2, Phase::PreflightFailed).await;
    assert_eq!(rig.serving("digits"), Some(1));
    assert_eq!(*rig.outside.probes.lock(), 3, "tested once more before the second try");
}

#[tokio::test(start_paused = true)]
async fn damaged_files_are_noticed_at_the_start_and_fetched_anew() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 90_000), rig.publish(2, 90_000));
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    rig.until_phase("digits", 2, Phase::Committed).await;
    rig.kill().await;
    let path = rig.home.join("data/bundles/blobs/sha256").join(BlobDigest::of(&two.model).to_hex());
    let mut bytes = fs::read(&path).unwrap();
    bytes[1_000] ^= 4;
    fs::write(&path, bytes).unwrap();
    rig.start().await;
    assert_eq!(rig.serving("digits"), Some(1), "the one before serves meanwhile");
    rig.until_phase("digits", 2, Phase::Committed).await;
    assert_eq!(rig.serving("digits"), Some(2));
}

#[tokio::test(start_paused = true)]
async fn refused_documents_are_reported_and_change_nothing() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 5_000);
    rig.start().await;
    rig.desire(5, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    let code = |r: &DeviceReport| r.refused.as_ref().map(|r| r.code);
    rig.desire(4, &[]).await;
    rig.until("replay refused", |r| code(r) == Some(RefusalCode::GenerationReplayed)).await;
    rig.desire(5, &[]).await;
    rig.until("equivocation refused", |r| code(r) == Some(RefusalCode::Equivocation)).await;
    rig.tell(Command::Desired(Bytes::from_static(b"junk"))).await;
    rig.until("junk refused", |r| code(r) == Some(RefusalCode::DocumentMalformed)).await;
    let foreign = Signers::new();
    let raw = foreign.seal_desired(&foreign.desired_document(9, &[]));
    rig.tell(Command::Desired(raw.into())).await;
    let report = rig.until("foreign refused", |r| code(r) == Some(RefusalCode::SignatureInvalid)).await;
    assert_eq!((report.generation, rig.serving("digits")), (5, Some(1)));
    rig.desire(5, &[("digits", &one.assigned)]).await;
    rig.until("the sound one again", |r| r.refused.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_trust_document_is_fetched_first_or_reported() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 5_000);
    rig.start().await;
    let mut desired = rig.signers.desired_document(1, &[("digits", one.assigned.clone())]);
    desired.trust_version = 3;
    let raw: Bytes = rig.signers.seal_desired(&desired).into();
    rig.outside.objects.lock().insert(FetchObject::Trust(2), rig.signers.trust(2));
    rig.tell(Command::Desired(raw.clone())).await;
    let report = rig
        .until("trust 3 missed", |r| r.refused.as_ref().is_some_and(|r| r.code == RefusalCode::TrustBehind))
        .await;
    assert_eq!((report.trust_version, report.generation), (2, 0), "as far as the chain went");
    rig.outside.objects.lock().insert(FetchObject::Trust(3), rig.signers.trust(3));
    rig.tell(Command::Desired(raw)).await;
    let report = rig.until_phase("digits", 1, Phase::Committed).await;
    assert_eq!((report.trust_version, report.refused), (3, None));
}

/// The controller answers every report of an older generation with its desired state.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_said_once_however_often_the_document_comes() {
    let mut rig = Rig::new();
    rig.start().await;
    let mut behind = rig.signers.desired_document(1, &[]);
    behind.trust_version = 2;
    let mut stale = rig.signers.desired_document(2, &[]);
    stale.expires = stale.issued;
    let foreign = Signers::new();
    rig.outside.objects.lock().insert(FetchObject::Trust(2), foreign.trust(2));
    for (desired, code) in [(behind, RefusalCode::SignatureInvalid), (stale, RefusalCode::Expired)] {
        let raw: Bytes = rig.signers.seal_desired(&desired).into();
        rig.tell(Command::Desired(raw.clone())).await;
        rig.until("the refusal", |r| r.refused.as_ref().is_some_and(|r| r.code == code)).await;
        let mut reports = rig.outside.report.subscribe();
        reports.mark_unchanged();
        for _ in 0..3 {
            rig.tell(Command::Desired(raw.clone())).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        assert!(!reports.has_changed().unwrap(), "{code} was said again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotated_controller_key_is_learnt_from_the_next_trust_document() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 5_000);
    rig.start().await;
    let successor = Signers::new();
    let mut next: Trust = rig.signers.trust_document(2);
    next.keys.insert(successor.controller.public().id(), successor.controller.public());
    next.roles.controller.keys = vec![successor.controller.public().id()];
    let raw = seal(TRUST_TYPE, &next, &[&rig.signers.root]);
    rig.outside.objects.lock().insert(FetchObject::Trust(2), raw);
    let desired = rig.signers.desired_document(1, &[("digits", one.assigned.clone())]);
    rig.tell(Command::Desired(successor.seal_desired(&desired).into())).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    // The old key is worth nothing any more, after a restart too.
    rig.kill().await;
    rig.start().await;
    rig.desire(2, &[]).await;
    rig.until("revoked key refused", |r| {
        r.refused.as_ref().is_some_and(|r| r.code == RefusalCode::SignatureInvalid)
    })
    .await;
    assert_eq!(rig.serving("digits"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_lost_trust_state_goes_on_serving_and_takes_only_an_answer_to_its_nonce() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 5_000), rig.publish(2, 5_000));
    rig.start().await;
    rig.desire(7, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.kill().await;
    for side in ["trust/trust.a", "trust/trust.b"] {
        fs::write(rig.home.join(side), b"torn").unwrap();
    }
    rig.start().await;
    assert_eq!(rig.serving("digits"), Some(1));
    let report = rig.until("nonce reported", |r| r.nonce.is_some()).await;
    rig.desire(3, &[("digits", &two.assigned)]).await; // a replay, now that no generation is known
    rig.until("refused", |r| r.refused.as_ref().is_some_and(|r| r.code == RefusalCode::StateLost)).await;
    let mut answer = rig.signers.desired_document(8, &[("digits", two.assigned.clone())]);
    answer.nonce = report.nonce;
    rig.tell(Command::Desired(rig.signers.seal_desired(&answer).into())).await;
    let report = rig.until_phase("digits", 2, Phase::Committed).await;
    assert_eq!((report.nonce, report.generation), (None, 8));
}

#[tokio::test(start_paused = true)]
async fn slots_are_independent_and_share_what_they_can() {
    let mut rig = Rig::new();
    let (one, two, bad) = (rig.publish(1, 400_000), rig.publish(2, 400_000), rig.publish(3, 400_000));
    rig.outside.refused.lock().insert(bad.digest);
    rig.start().await;
    let slots = [("a", &one.assigned), ("b", &two.assigned), ("c", &bad.assigned), ("d", &one.assigned)];
    rig.desire(1, &slots).await;
    rig.until_phase("c", 3, Phase::PreflightFailed).await;
    for (slot, counter) in [("a", 1), ("b", 2), ("d", 1)] {
        rig.until_phase(slot, counter, Phase::Committed).await;
        assert_eq!(rig.serving(slot), Some(counter));
    }
    let model = FetchObject::Blob(BlobDigest::of(&one.model));
    let bytes = *rig.outside.asked_bytes.lock();
    assert!(rig.outside.asked.lock().contains(&model));
    assert!(bytes < one.bytes + two.bytes + bad.bytes + 5_000, "{bytes}: a shared blob came twice");
    // One slot gone: the others do not notice.
    rig.desire(2, &[("a", &one.assigned), ("b", &two.assigned)]).await;
    rig.until("d is gone", |r| r.slots.len() == 2).await;
    assert_eq!((rig.serving("a"), rig.serving("b"), rig.serving("d")), (Some(1), Some(2), None));
    let models = rig.home.join("data/bundles/blobs/sha256");
    assert!(models.join(BlobDigest::of(&one.model).to_hex()).exists(), "slot a still names it");
    assert!(!models.join(BlobDigest::of(&bad.model).to_hex()).exists());
}

#[tokio::test(start_paused = true)]
async fn terminal_reports_wait_for_a_broken_outbox() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 5_000);
    *rig.outside.outbox_broken.lock() = true;
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.stop().await;
    assert_eq!(rig.terminals(), []);
    *rig.outside.outbox_broken.lock() = false;
    rig.start().await;
    assert_eq!(rig.terminals(), [(Phase::Committed, 1)]);
    rig.stop().await;
    rig.start().await;
    assert_eq!(rig.terminals().len(), 1, "once it is taken over, it is not offered again");
}

#[tokio::test(start_paused = true)]
async fn what_is_revoked_while_it_is_fetched_is_given_up() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 3_000_000);
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until("halfway", |r| {
        r.slots.values().next().is_some_and(|s| s.progress.is_some_and(|p| p.done_bytes > 0))
    })
    .await;
    let mut next = rig.signers.trust_document(2);
    next.floors.insert("digits".parse().unwrap(), 2);
    let raw = seal(TRUST_TYPE, &next, &[&rig.signers.root, &rig.signers.publisher]);
    let head = TrustHead { schema: 1, version: 2, digest: EnvelopeDigest::of(&raw) };
    rig.outside.objects.lock().insert(FetchObject::Trust(2), raw);
    rig.tell(Command::TrustHead(head)).await;
    let report = rig.until_phase("digits", 1, Phase::VerifyFailed).await;
    let error = report.slots.values().next().unwrap().last_error.clone().unwrap();
    assert_eq!(error.code, RefusalCode::BelowFloor);
    assert_eq!(*rig.outside.probes.lock(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_promised_trust_document_that_does_not_exist_is_reported() {
    let mut rig = Rig::new();
    rig.start().await;
    let head = TrustHead { schema: 1, version: u64::MAX, digest: EnvelopeDigest::of(b"") };
    rig.tell(Command::TrustHead(head)).await;
    let behind = |r: &DeviceReport| r.refused.as_ref().is_some_and(|r| r.code == RefusalCode::TrustBehind);
    rig.until("reported", behind).await;
    assert_eq!(rig.outside.asked.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn tests_take_turns_and_a_bundle_that_waits_for_its_own_is_verified() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 50_000), rig.publish(2, 50_000));
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned), ("other", &two.assigned)]).await;
    let phases = |report: &DeviceReport| report.slots.values().map(|s| s.phase).collect::<BTreeSet<_>>();
    rig.until("one tested, one waiting", |r| phases(r) == [Phase::Verified, Phase::Testing].into()).await;
    rig.until("both done", |r| phases(r) == [Phase::Committed].into()).await;
    assert_eq!(*rig.outside.testing.lock(), (0, 1), "never two at a time");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_breaks_the_agents_own_code_is_a_failed_try_and_no_end() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 50_000);
    *rig.outside.broken_probes.lock() = 2;
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    let report = rig
        .until("told", |r| {
            r.slots.values().any(|s| s.last_error.as_ref().is_some_and(|e| e.message.contains("broke")))
        })
        .await;
    assert_eq!(report.slots.values().next().unwrap().phase, Phase::Verified, "it waits for the next try");
    rig.until_phase("digits", 1, Phase::Committed).await;
    assert_eq!(*rig.outside.probes.lock(), 3);
    // For ever broken: given up and told, like any other failure.
    let two = rig.publish(2, 50_000);
    *rig.outside.broken_probes.lock() = u32::MAX;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    rig.until_phase("digits", 2, Phase::PreflightFailed).await;
    assert_eq!(rig.serving("digits"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn the_late_word_of_a_job_does_not_bring_a_removed_slot_back() {
    let rig = Rig::new();
    let mut updater = rig.started().await;
    let late = Event::Progress { ticket: 3, done_bytes: 1, total_bytes: 2 };
    updater.internal(Internal::Slot("gone".parse().unwrap(), late)).await;
    assert!(updater.doc.slots.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_save_that_was_cut_off_does_not_make_later_ones_pretend() {
    let rig = Rig::new();
    let mut updater = rig.started().await;
    updater.disk = None; // as a panic within the save leaves it
    updater.doc.settings.window_secs = 77;
    updater.persist().await.unwrap();
    let (_, saved) = DurableSlots::<Slots>::open(&rig.data_dir(), "slots").unwrap();
    assert!(matches!(saved, Loaded::Value(doc) if doc.settings.window_secs == 77));
    // And where the files cannot be opened, it says so.
    updater.disk = None;
    updater.config.data_dir = rig.data_dir().join("slots.a").join("no folder");
    assert!(matches!(updater.persist().await, Err(SaveError::Write { .. })));
}

#[tokio::test(start_paused = true)]
async fn lost_slot_markers_are_reported_until_every_slot_is_whole_again() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 50_000);
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.kill().await;
    for side in ["slots.a", "slots.b"] {
        fs::write(rig.data_dir().join(side), b"EFD1 and then nonsense").unwrap();
    }
    let asked = rig.outside.asked.lock().len();
    rig.start().await;
    let report = rig.until("told", |r| r.refused.is_some()).await;
    let refused = report.refused.unwrap();
    assert_eq!((refused.code, refused.subject.as_deref()), (RefusalCode::StateLost, Some("slot markers")));
    assert_eq!(rig.serving("digits"), None);
    // The same desired state as ever brings it back, from the files that are still there.
    rig.desire(1, &[("digits", &one.assigned)]).await;
    let report = rig.until_phase("digits", 1, Phase::Probation).await;
    assert!(report.refused.is_some(), "not yet whole");
    assert_eq!(rig.until_phase("digits", 1, Phase::Committed).await.refused, None);
    assert_eq!(rig.outside.asked.lock().len(), asked, "nothing was fetched again");
}
