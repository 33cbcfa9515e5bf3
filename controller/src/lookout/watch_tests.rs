//! From stored profiles to incidents, alerts and advice, on a real store.

use super::{
    super::{
        Catalog, Filter, Reading,
        subject::tests::{baseline, content_of},
    },
    *,
};
use crate::{
    alerts::RAISED,
    blobs::local::LocalBlobs,
    captures::{CaptureLimits, Captures},
    fleet::testing::{TestFleet, actor, start},
    ingest::{DEVICE_PROFILE, device_profile_id},
    store::Scan,
};
use async_trait::async_trait;
use edgefleet_shared::{bundle::Manifest, telemetry::Role};

struct OneBundle;

#[async_trait]
impl Catalog for OneBundle {
    async fn manifest(&self, _: &BundleName) -> Option<Manifest> {
        None
    }
    async fn baseline(&self, bundle: &BundleName) -> Option<Known> {
        let known = bundle.model.as_str() == "digits";
        Some(if known { Known::Baseline(Arc::new(baseline())) } else { Known::Nothing })
    }
}

struct Place {
    bundle: BundleName,
    home: TestFleet,
    lookout: Lookout,
    now: Timestamp,
}

fn bundle() -> BundleName {
    "digits@1".parse().unwrap()
}

async fn captures(home: &TestFleet) -> Arc<Captures> {
    let (store, audit) = (home.fleet.store().clone(), home.fleet.audit_log().clone());
    let (blobs, _) = LocalBlobs::open(home.dir.path().join("blobs")).await.unwrap();
    let opened = Captures::open(store, audit, Arc::new(blobs), CaptureLimits::default(), start()).await;
    Arc::new(opened.unwrap())
}

async fn parts(home: &TestFleet) -> LookoutParts {
    let (store, audit) = (home.fleet.store().clone(), home.fleet.audit_log().clone());
    let monitoring = Monitoring::open(store.clone(), audit).await.unwrap();
    let sources = Sources::new(home.fleet.clone(), Arc::new(OneBundle), captures(home).await);
    LookoutParts { store, monitoring, sources }
}

async fn lookout(home: &TestFleet) -> Lookout {
    Lookout::new(parts(home).await).0
}

impl Place {
    async fn new() -> Self {
        let home = TestFleet::new().await;
        let lookout = lookout(&home).await;
        Self { bundle: bundle(), home, lookout, now: start() }
    }

    /// One hour in which each device sends a profile, shifted by so much, and the lookout looks.
    async fn hour(&mut self, shifts: &[f64]) {
        self.hour_of(&shifts.iter().map(|shift| [*shift, 0.0]).collect::<Vec<_>>()).await;
    }

    /// The same of both channels.
    async fn hour_of(&mut self, shifts: &[[f64; 2]]) {
        self.now = self.now + Duration::from_secs(3_600);
        let store = self.home.fleet.store();
        let mut heard = BTreeSet::new();
        for (n, shift) in shifts.iter().enumerate() {
            let device: DeviceId = format!("dev-{n:02}").parse().unwrap();
            let id = device_profile_id(&device, &self.bundle, Role::Primary);
            let known = store.get(DEVICE_PROFILE, &id).await.unwrap();
            let mut own =
                known.map_or_else(DeviceProfile::default, |d| DeviceProfile::parse(&d.body).unwrap());
            let mut profile = content_of(400, *shift);
            if *shift != [0.0; 2] {
                profile.quality.as_mut().unwrap().expected_correct *= 0.6;
            }
            own.add(self.now - Duration::from_secs(3_600), self.now, &profile, self.now);
            let put = Transaction::new().put(DEVICE_PROFILE, id, Expect::Any, own.to_bytes().unwrap());
            store.commit(put).await.unwrap();
            heard.insert(Heard { bundle: self.bundle.clone(), device, cohort: Cohort::all() });
        }
        self.lookout.pass(&heard, self.now).await.unwrap();
    }

    fn reading(&self) -> Reading {
        Reading::new(self.home.fleet.store().clone(), self.home.fleet.audit_log().clone())
    }

    async fn open(&self) -> Vec<(drift::Cause, usize)> {
        let open = self.reading().incidents(&Filter::default()).await.unwrap();
        open.iter().map(|record| (record.incident.key.cause, record.incident.devices)).collect()
    }

    async fn alerts(&self) -> Vec<String> {
        let page = self.home.fleet.store().scan(RAISED, Scan::all()).await.unwrap();
        let title = |(_, document): &(String, crate::store::Document)| {
            let event: crate::alerts::AlertEvent = serde_json::from_slice(&document.body).unwrap();
            format!("{}: {}", event.kind, event.title)
        };
        let mut all: Vec<_> = page.entries.iter().map(title).collect();
        all.sort();
        all
    }
}

#[tokio::test]
async fn one_device_that_sees_something_else_is_one_incident_and_is_over_when_it_ends() {
    let mut place = Place::new().await;
    let (usual, odd) = ([0.0; 8], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5]);
    for _ in 0..6 {
        place.hour(&usual).await;
    }
    assert_eq!(place.open().await, []);
    for _ in 0..4 {
        place.hour(&odd).await;
    }
    assert_eq!(place.open().await, [(drift::Cause::Local, 1)]);
    let advice = place.reading().advice(&Filter::default()).await.unwrap();
    let rules: Vec<_> = advice.iter().map(|one| one.record.tracked.finding.rule.to_string()).collect();
    assert!(rules.contains(&"A01".to_owned()), "{rules:?}");
    // A process that starts anew knows what was open, and tells nobody twice.
    let told = place.alerts().await;
    place.lookout = lookout(&place.home).await;
    place.lookout.remember(place.now).await.unwrap();
    place.hour(&odd).await;
    assert_eq!(place.alerts().await, told);
    for _ in 0..5 {
        place.hour(&usual).await;
    }
    assert_eq!(place.open().await, []);
    let all = place.reading().incidents(&Filter { resolved: true, ..Filter::default() }).await.unwrap();
    assert_eq!(all.iter().filter(|record| record.resolved.is_some()).count(), 1);
    assert!(place.alerts().await.iter().any(|one| one.starts_with("incident.resolved")));
}

#[tokio::test]
async fn a_cohort_that_drifts_is_one_incident_with_advice_that_people_can_mark() {
    let mut place = Place::new().await;
    for _ in 0..6 {
        place.hour(&[0.0; 8]).await;
    }
    for _ in 0..6 {
        place.hour(&[0.5; 8]).await;
    }
    let open = place.open().await;
    assert_eq!(open, [(drift::Cause::Population, 8)], "eight devices, one incident");
    let opened = place.alerts().await.into_iter().filter(|one| one.starts_with("incident.opened")).count();
    assert_eq!(opened, 1);
    let advice = place.reading().advice(&Filter::default()).await.unwrap();
    let first = advice.first().expect("a cohort whose estimate falls is worth advice");
    let marked =
        place.reading().mark(&actor(), &first.record.id, true, "new lamps".into(), place.now).await.unwrap();
    assert!(marked.mark.as_ref().is_some_and(|mark| mark.useful));
    let again = place.reading().one_advice(&first.record.id).await.unwrap();
    assert_eq!(again, marked);
    let rule = first.record.tracked.finding.rule;
    let precision = place.reading().precision().await.unwrap();
    let own = precision.iter().find(|one| one.rule == rule).unwrap();
    assert_eq!((own.marks.useful, own.marks.not_useful), (1, 0));
    assert!(matches!(
        place.reading().mark(&actor(), "adv-nothing", true, String::new(), place.now).await,
        Err(super::super::ReadingError::NoAdvice { .. })
    ));
}

#[tokio::test]
async fn a_drift_that_spreads_to_another_channel_stays_one_incident() {
    let mut place = Place::new().await;
    for _ in 0..6 {
        place.hour_of(&[[0.0; 2]; 8]).await;
    }
    for _ in 0..3 {
        place.hour_of(&[[0.5, 0.0]; 8]).await;
    }
    let channels = async |place: &Place| -> Vec<usize> {
        let open = place.reading().incidents(&Filter::default()).await.unwrap();
        open.iter().map(|record| record.incident.channels_in_all).collect()
    };
    assert_eq!(channels(&place).await, [1]);
    for _ in 0..3 {
        place.hour_of(&[[0.5, 0.5]; 8]).await;
    }
    assert_eq!(channels(&place).await, [2]);
    let opened = place.alerts().await.into_iter().filter(|one| one.starts_with("incident.opened")).count();
    assert_eq!(opened, 1);
}

#[tokio::test]
async fn a_bundle_without_a_baseline_is_held_against_its_own_past() {
    let mut place = Place::new().await;
    place.bundle = "other@1".parse().unwrap();
    // Whatever comes within the first day is learned, not told.
    for hour in 0..30 {
        place.hour(&[if hour < 1 { 0.3 } else { 0.0 }; 8]).await;
        assert_eq!(place.open().await, [], "hour {hour}");
    }
    let odd = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.6];
    for _ in 0..4 {
        place.hour(&odd).await;
    }
    assert_eq!(place.open().await, [(drift::Cause::Local, 1)], "beside its cohort");
    for _ in 0..6 {
        place.hour(&[0.0; 8]).await;
    }
    assert_eq!(place.open().await, []);
    for _ in 0..4 {
        place.hour(&[0.6; 8]).await;
    }
    assert_eq!(place.open().await, [(drift::Cause::Population, 8)], "beside its past");
}

#[tokio::test]
async fn what_is_over_for_long_is_forgotten() {
    let mut place = Place::new().await;
    for shift in [0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0] {
        place.hour(&[0.0, 0.0, 0.0, shift]).await;
    }
    let everything = Filter { resolved: true, ..Filter::default() };
    assert_eq!(place.reading().incidents(&everything).await.unwrap().len(), 1);
    place.now = place.now + KEPT + TIDY;
    place.hour(&[0.0; 4]).await;
    assert_eq!(place.reading().incidents(&everything).await.unwrap(), []);
}

#[path = "watch_evidence_tests.rs"]
mod evidence_tests;
