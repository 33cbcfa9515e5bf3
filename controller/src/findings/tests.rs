use super::*;
use crate::store::sled_home::{SledConfig, SledStore};

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(1_800_000_000 + secs)
}

async fn store(dir: &std::path::Path) -> Arc<dyn FleetStore> {
    Arc::new(SledStore::open(SledConfig::new(dir.join("store"))).await.expect("a store").0)
}

#[tokio::test]
async fn a_finding_stays_open_over_a_restart_until_a_person_resolves_it() {
    let dir = tempfile::tempdir().expect("temp");
    let store = store(dir.path()).await;
    let audit = Arc::new(AuditLog::new(store.clone()));
    let device: DeviceId = "dev-1".parse().expect("device");
    let code = FindingCode::DuplicateIdentity;
    let findings = Findings::open(store.clone(), audit.clone()).await.expect("findings");
    assert!(!findings.isolates(&device));
    for secs in 0..200 {
        findings.note(&device, code, "two agents".into(), BTreeMap::new(), at(secs)).await;
    }
    drop(findings);
    let findings = Findings::open(store.clone(), audit.clone()).await.expect("findings");
    assert!(findings.isolates(&device));
    let [found] = findings.list().try_into().expect("one finding");
    assert_eq!((found.since, found.last), (at(0), at(180)), "written once a minute, not each time");

    let actor = Actor::token("t", "ops");
    let closed = findings.resolve(&actor, &device, code, at(300)).await.expect("resolved");
    assert_eq!(closed.code, code);
    assert!(!findings.isolates(&device));
    let again = findings.resolve(&actor, &device, code, at(300)).await;
    assert!(matches!(again, Err(ResolveError::NotOpen { .. })), "{again:?}");
    let entries = audit.read(1, 10).await.expect("audit");
    assert_eq!((entries.len(), entries[0].action.as_str()), (1, "finding.resolve"));
    assert!(Findings::open(store, audit).await.expect("findings").list().is_empty());
}

#[test]
fn codes_are_the_same_in_texts_and_documents() {
    for code in FindingCode::ALL {
        assert_eq!(serde_json::to_value(code).expect("json"), code.as_str());
        assert_eq!(code.as_str().parse(), Ok(code));
    }
    assert!("other".parse::<FindingCode>().is_err());
}
