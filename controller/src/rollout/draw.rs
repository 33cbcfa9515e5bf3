//! Draws lots: see [`assignment`](super::assignment) for what they decide.

use super::{
    assignment::{Arm, Candidate, Member, Membership, MembershipSummary, Seed, StageSize, Stratum},
    plan::{Mode, Plan, Stage},
};
use edgefleet_shared::{
    digest::{BlobDigest, DigestHasher},
    ids::DeviceId,
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// Strata kept apart; the smallest beyond that are pooled, so that the document stays small.
pub(super) const MAX_STRATA: usize = 64;
/// The pool of strata too small to hold a canary and its controls.
pub(super) const POOLED: &str = "(others)";
/// The lab: named, not drawn.
pub(super) const NAMED: &str = "(named)";

/// HMAC-SHA256 (RFC 2104) with one key for many messages: the padded key is hashed once.
struct Keyed {
    inner: Sha256,
    outer: Sha256,
}

impl Keyed {
    fn new(key: &[u8; 32]) -> Self {
        let (mut inner, mut outer) = ([0x36u8; 64], [0x5cu8; 64]);
        for (n, byte) in key.iter().enumerate() {
            inner[n] ^= byte;
            outer[n] ^= byte;
        }
        Self { inner: Sha256::new().chain_update(inner), outer: Sha256::new().chain_update(outer) }
    }
    fn mac(&self, message: &[u8]) -> [u8; 32] {
        let inner = self.inner.clone().chain_update(message).finalize();
        self.outer.clone().chain_update(inner).finalize().into()
    }
    fn number(&self, message: &[u8]) -> u64 {
        let mac = self.mac(message);
        u64::from_be_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], mac[6], mac[7]])
    }
}

/// A candidate in the draw.
struct Lot<'a> {
    index: usize,
    device: &'a DeviceId,
    stratum: u32,
    u: u64,
    /// Its place among all, 0 to 2^64: strata in proportion.
    place: u64,
}

/// One text per distinct value, numbered.
#[derive(Default)]
struct Interned {
    numbers: HashMap<String, u32>,
    names: Vec<Arc<str>>,
}
impl Interned {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len() as u32; // fewer than devices, which are fewer than 2^32
        self.numbers.insert(name.to_owned(), number);
        self.names.push(Arc::from(name));
        number
    }
}

fn stratum_name(plan: &Plan, candidate: &Candidate<'_>, name: &mut String) {
    use std::fmt::Write as _;
    name.clear();
    for key in &plan.assign.strata {
        if !name.is_empty() {
            name.push('|');
        }
        if key == "incumbent" {
            match candidate.incumbent {
                Some(bundle) => drop(write!(name, "{bundle}")),
                None => name.push('-'),
            }
        } else {
            name.push_str(candidate.attributes.get(key).map_or("-", String::as_str));
        }
    }
    if name.is_empty() {
        name.push_str("all");
    }
    // Attributes are short words; a hostile fact must not make the document large.
    if name.len() > 96 {
        let mut end = 96;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
    }
}

pub(super) fn draw(plan: &Plan, seed: &Seed, candidates: &[Candidate<'_>]) -> Membership {
    let keyed = Keyed::new(seed.bytes());
    let excluded: BTreeSet<_> = plan.assign.exclude.iter().collect();
    let mut named: BTreeMap<&DeviceId, u16> = BTreeMap::new();
    for (number, stage) in plan.stages.iter().enumerate() {
        for device in &stage.devices {
            named.entry(device).or_insert(number as u16);
        }
    }
    let mut strata = Interned::default();
    let mut lots = Vec::with_capacity(candidates.len());
    let mut lab = Vec::new();
    let mut name = String::new();
    for (index, candidate) in candidates.iter().enumerate() {
        if excluded.contains(candidate.device) {
            continue;
        }
        let u = keyed.number(candidate.device.as_str().as_bytes());
        if let Some(stage) = named.get(candidate.device) {
            lab.push((*stage, candidate.device, index));
            continue;
        }
        stratum_name(plan, candidate, &mut name);
        lots.push(Lot { index, device: candidate.device, stratum: strata.number(&name), u, place: 0 });
    }
    lab.sort_unstable();
    lab.dedup_by_key(|(_, device, _)| *device);
    let (names, mut lots) = pool_small(plan, &strata, lots);
    lots.sort_unstable_by(|a, b| (a.stratum, a.u, a.device).cmp(&(b.stratum, b.u, b.device)));
    lots.dedup_by_key(|lot| lot.device);
    interleave(&keyed, &names, &mut lots);
    lots.sort_unstable_by(|a, b| (a.place, a.u, a.device).cmp(&(b.place, b.u, b.device)));
    if let Some(most) = plan.assign.max_devices {
        lots.truncate(usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(lab.len()));
    }
    Layout::new(plan, &names, &lots).members(plan, candidates, &lab, &lots)
}

/// Pools strata too small for a canary with controls, and the smallest beyond [`MAX_STRATA`].
/// Numbers the rest by name, so that the order of the candidates does not show.
fn pool_small<'a>(plan: &Plan, strata: &Interned, mut lots: Vec<Lot<'a>>) -> (Vec<String>, Vec<Lot<'a>>) {
    let mut sizes = vec![0u64; strata.names.len()];
    lots.iter().for_each(|lot| sizes[lot.stratum as usize] += 1);
    let least = 2 * (1 + u64::from(plan.assign.controls_per_canary));
    let mut kept: Vec<_> = (0..sizes.len()).filter(|n| sizes[*n] >= least).collect();
    kept.sort_by(|a, b| (sizes[*b], &strata.names[*a]).cmp(&(sizes[*a], &strata.names[*b])));
    kept.truncate(MAX_STRATA - 1);
    let mut names: Vec<String> = kept.iter().map(|n| strata.names[*n].to_string()).collect();
    names.sort();
    let pool = names.len() as u32;
    let number: Vec<u32> = strata
        .names
        .iter()
        .map(|name| names.binary_search_by(|kept| kept.as_str().cmp(name)).map_or(pool, |at| at as u32))
        .collect();
    names.push(POOLED.to_owned());
    lots.iter_mut().for_each(|lot| lot.stratum = number[lot.stratum as usize]);
    (names, lots)
}

/// Systematic sampling: the i-th of a stratum of n stands at (i + offset) / n of the whole, so that every
/// prefix holds every stratum's share to within one. The random offset makes equal strata start apart.
fn interleave(keyed: &Keyed, names: &[String], lots: &mut [Lot<'_>]) {
    for group in lots.chunk_by_mut(|a, b| a.stratum == b.stratum) {
        let n = group.len() as u128;
        let Some(first) = group.first() else { continue };
        // A device id holds no `/`: no device shares this message.
        let label = format!("stratum/{}", names[first.stratum as usize]);
        let offset = u128::from(keyed.number(label.as_bytes()));
        for (i, lot) in group.iter_mut().enumerate() {
            lot.place = ((((i as u128) << 64) + offset) / n) as u64;
        }
    }
}

/// Sizes of stages and arms, fixed before members are written out.
struct Layout {
    /// Cumulative number of drawn devices by stage; named stages repeat the one before.
    cuts: Vec<u64>,
    canary_stage: Option<usize>,
    strata: Vec<Stratum>,
    /// Index into the lots to the canary's number.
    matched: HashMap<usize, u32>,
    /// Index into the lots to the number of the control's canary.
    controls: HashMap<usize, u32>,
}

/// Canaries of one later stage that get a control: evidence gains little beyond, and each pair costs work.
const MOST_COMPARED: usize = 500;
/// Canaries below which device-level gates are powerless anyway (DECISIONS 25).
const ENOUGH_CANARIES: u64 = 10;

impl Layout {
    fn new(plan: &Plan, names: &[String], lots: &[Lot<'_>]) -> Self {
        let n = lots.len() as u64;
        let cuts = cuts(plan, n);
        let last = plan.last_stage();
        let comparing = |stage: &Stage| stage.mode == Mode::Active && stage.is_drawn();
        let possible: Vec<_> = (0..last).filter(|s| comparing(&plan.stages[*s]) && cuts[*s] > 0).collect();
        let asked = |s: &usize| plan.stages[*s].gates.iter().any(|gate| gate.is_device_level());
        // The first stage that asks and is large enough; in a small fleet one that is large enough at least.
        let canary_stage = possible
            .iter()
            .find(|s| asked(s) && cuts[**s] >= ENOUGH_CANARIES)
            .or_else(|| possible.iter().find(|s| cuts[**s] >= ENOUGH_CANARIES))
            .or_else(|| possible.iter().rfind(|s| asked(s)))
            .or_else(|| possible.first())
            .copied();
        let mut strata: Vec<Stratum> = names
            .iter()
            .map(|name| Stratum { name: name.clone(), devices: 0, canaries: 0, controls: 0 })
            .collect();
        lots.iter().for_each(|lot| strata[lot.stratum as usize].devices += 1);
        let mut layout =
            Self { cuts, canary_stage, strata, matched: HashMap::new(), controls: HashMap::new() };
        layout.match_controls(plan, lots);
        layout.match_later(plan, lots);
        layout
    }

    /// Gives each canary of the canary stage its controls: the highest of its stratum.
    fn match_controls(&mut self, plan: &Plan, lots: &[Lot<'_>]) {
        let Some(stage) = self.canary_stage else { return };
        let canaries = self.cuts[stage] as usize;
        let mut by_stratum: BTreeMap<u32, Vec<(usize, u32)>> = BTreeMap::new();
        for (number, lot) in lots.iter().take(canaries).enumerate() {
            by_stratum.entry(lot.stratum).or_default().push((number, number as u32));
            self.strata[lot.stratum as usize].canaries += 1;
        }
        let mut wanted: BTreeMap<u32, u64> = BTreeMap::new();
        for (stratum, its) in &by_stratum {
            let row = &self.strata[*stratum as usize];
            let most = u64::from(plan.assign.controls_per_canary) * its.len() as u64;
            wanted.insert(*stratum, most.min((row.devices - row.canaries) / 2));
        }
        // From the end: the highest of each stratum stand last.
        for (index, lot) in lots.iter().enumerate().skip(canaries).rev() {
            let Some(left) = wanted.get_mut(&lot.stratum).filter(|left| **left > 0) else { continue };
            *left -= 1;
            let its = &by_stratum[&lot.stratum];
            let row = &mut self.strata[lot.stratum as usize];
            let (_, number) = its[row.controls as usize % its.len()];
            row.controls += 1;
            self.controls.insert(index, number);
            // Who got none is in no comparison: it would be a fresh sample beside the controls of others.
            self.matched.insert(number as usize, number);
        }
    }

    /// Gives the canaries of the stages after it one control each, out of the devices that would have waited
    /// for the last stage anyway. They are compared among themselves: the controls of the stage before that
    /// are still at risk by then are the healthier ones.
    fn match_later(&mut self, plan: &Plan, lots: &[Lot<'_>]) {
        let Some(canary_stage) = self.canary_stage else { return };
        let free: Vec<usize> = (0..lots.len()).filter(|index| !self.controls.contains_key(index)).collect();
        let cut = |stage: usize| usize::try_from(self.cuts[stage]).map_or(free.len(), |n| n.min(free.len()));
        let drawn =
            |stage: &usize| plan.stages[*stage].is_drawn() && plan.stages[*stage].mode == Mode::Active;
        let later: Vec<usize> = (canary_stage + 1..plan.last_stage()).filter(drawn).collect();
        let Some(top) = later.last().map(|stage| cut(*stage)) else { return };
        let mut spare: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for index in &free[top..] {
            spare.entry(lots[*index].stratum).or_default().push(*index); // the highest last
        }
        let mut from = cut(canary_stage);
        let mut found = Vec::new();
        for stage in later {
            let to = cut(stage).max(from);
            let pairs = free[from..to].iter().filter_map(|canary| {
                let control = spare.get_mut(&lots[*canary].stratum)?.pop()?;
                Some((*canary, control))
            });
            found.extend(pairs.take(MOST_COMPARED));
            from = to;
        }
        for (canary, control) in found {
            self.matched.insert(canary, canary as u32);
            self.controls.insert(control, canary as u32);
            let row = &mut self.strata[lots[canary].stratum as usize];
            row.canaries += 1;
            row.controls += 1;
        }
    }

    fn members(
        self,
        plan: &Plan,
        candidates: &[Candidate<'_>],
        lab: &[(u16, &DeviceId, usize)],
        lots: &[Lot<'_>],
    ) -> Membership {
        let mut texts = Interned::default();
        let last = plan.last_stage();
        let label = plan.group_rule().map(|(label, _)| label);
        let mut members = Vec::with_capacity(lab.len() + lots.len());
        let mut stages = vec![StageSize::default(); plan.stages.len()];
        let mut hash = DigestHasher::new();
        let named = self.strata.len() as u16;
        let mut push = |members: &mut Vec<Member>,
                        index: usize,
                        stage: u16,
                        shadow,
                        arm,
                        stratum,
                        match_of,
                        cohort: u16| {
            let candidate = &candidates[index];
            let mut text = |key: &str| {
                candidate.attributes.get(key).map(|value| {
                    let number = texts.number(value);
                    texts.names[number as usize].clone()
                })
            };
            let member = Member {
                device: candidate.device.clone(),
                stage,
                shadow,
                arm,
                stratum,
                site: text("site").unwrap_or_else(|| Arc::from("")),
                group: label.and_then(&mut text),
                rank: members.len() as u64,
                match_of,
                cohort,
            };
            for size in [Some(stage), shadow].into_iter().flatten() {
                stages[usize::from(size)].devices += 1;
            }
            stages[usize::from(stage)].controls += u64::from(arm == Arm::Control);
            stages[usize::from(cohort)].compared += u64::from(arm == Arm::Canary && match_of.is_some());
            stages[usize::from(cohort)].against += u64::from(arm == Arm::Control);
            hash.update(member.device.as_str().as_bytes());
            hash.update(&[0, stage as u8, shadow.map_or(255, |s| s as u8), arm as u8]);
            members.push(member);
        };
        // A named device of a shadow stage has its active turn in the next active one.
        for (stage, _, index) in lab {
            let at = usize::from(*stage);
            let active = (at..=last).find(|s| plan.stages[*s].mode == Mode::Active).unwrap_or(last);
            let shadow = (plan.stages[at].mode == Mode::Shadow && active != at).then_some(*stage);
            push(&mut members, *index, active as u16, shadow, Arm::None, named, None, active as u16);
        }
        let of = |mode: Mode, cut: u64| {
            (0..last).find(|s| {
                plan.stages[*s].mode == mode && plan.stages[*s].devices.is_empty() && cut < self.cuts[*s]
            })
        };
        let mut place = 0;
        let mut stage_of: HashMap<u32, u16> = HashMap::new();
        for (index, lot) in lots.iter().enumerate() {
            let (stage, shadow, arm) = if self.controls.contains_key(&index) {
                (last, None, Arm::Control)
            } else {
                let stage = of(Mode::Active, place).unwrap_or(last);
                let shadow = of(Mode::Shadow, place).filter(|shadow| *shadow < stage);
                place += 1;
                (stage, shadow, if stage < last { Arm::Canary } else { Arm::None })
            };
            let match_of = self.controls.get(&index).or_else(|| self.matched.get(&index)).copied();
            // Canaries stand before their controls.
            let cohort = match match_of {
                Some(number) => *stage_of.entry(number).or_insert(stage as u16),
                None => stage as u16,
            };
            push(
                &mut members,
                lot.index,
                stage as u16,
                shadow.map(|s| s as u16),
                arm,
                lot.stratum as u16,
                match_of,
                cohort,
            );
        }
        let mut strata = self.strata;
        strata.push(Stratum { name: NAMED.to_owned(), devices: lab.len() as u64, canaries: 0, controls: 0 });
        let summary = MembershipSummary {
            digest: Some(BlobDigest::from_bytes(hash.finish())),
            stages,
            strata,
            canary_stage: self.canary_stage.map(|stage| stage as u16),
        };
        Membership { members, summary }
    }
}

/// Cumulative sizes of the drawn stages among `n` devices, never shrinking, all in the last one.
fn cuts(plan: &Plan, n: u64) -> Vec<u64> {
    let small = n < SMALL_FLEET;
    let mut before = [0u64; 2];
    let last = plan.last_stage();
    let mut active_drawn = 0;
    let mut cuts = Vec::with_capacity(plan.stages.len());
    for (number, stage) in plan.stages.iter().enumerate() {
        let floor = &mut before[usize::from(stage.mode == Mode::Shadow)];
        let cut = if number == last {
            n
        } else if let Some(size) = stage.size.filter(|_| stage.devices.is_empty()) {
            let mut cut = size.of(n);
            if small && matches!(size, super::span::Share::Percent(_)) {
                // 1, 3, 10, rest (fleet-control 6.3); shadow takes those that come first afterwards.
                let step = if stage.mode == Mode::Shadow { 3 } else { SMALL_STEPS[active_drawn.min(2)] };
                cut = step;
            } else {
                cut = cut.max(stage.min.unwrap_or(0)).min(stage.max.unwrap_or(u64::MAX));
            }
            active_drawn += usize::from(stage.mode == Mode::Active);
            cut.min(n)
        } else {
            *floor
        };
        *floor = cut.max(*floor);
        cuts.push(*floor);
    }
    cuts
}

/// Fleets below this are staged by counts: shares of them are nobody.
pub(super) const SMALL_FLEET: u64 = 50;
const SMALL_STEPS: [u64; 3] = [1, 3, 10];

pub(super) fn late(
    plan: &Plan,
    seed: &Seed,
    summary: &MembershipSummary,
    candidate: &Candidate<'_>,
) -> Member {
    let mut name = String::new();
    stratum_name(plan, candidate, &mut name);
    let stratum = summary.strata.iter().position(|row| row.name == name);
    let stratum = stratum.or_else(|| summary.strata.iter().position(|row| row.name == POOLED)).unwrap_or(0);
    let text = |key: &str| candidate.attributes.get(key).map(|value| Arc::from(value.as_str()));
    Member {
        device: candidate.device.clone(),
        stage: plan.last_stage() as u16,
        shadow: None,
        arm: Arm::None,
        stratum: stratum as u16,
        site: text("site").unwrap_or_else(|| Arc::from("")),
        group: plan.group_rule().and_then(|(label, _)| text(label)),
        // Behind everybody, in random order.
        rank: 1 << 62 | Keyed::new(seed.bytes()).number(candidate.device.as_str().as_bytes()) >> 2,
        match_of: None,
        cohort: plan.last_stage() as u16,
    }
}
