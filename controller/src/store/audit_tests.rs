//! What can be done to a chain, and what the check says about it.

use super::*;

fn chain(length: u64) -> Vec<AuditEntry> {
    let mut entries = Vec::new();
    let mut head = Head::default();
    for number in 1..=length {
        let entry = AuditEntry::link(
            head,
            &AuditDraft {
                at: format!("2026-03-01T12:00:{number:02}Z"),
                who: "token:ci".into(),
                action: "device.label".into(),
                subject: format!("device/d-{number}"),
                before: (number % 2 == 0).then(|| "{}".into()),
                after: Some("{\"site\":\"lab\"}".into()),
                note: None,
            },
        );
        head = entry.head();
        entries.push(entry);
    }
    entries
}

#[test]
fn a_whole_chain_leads_to_its_head() {
    let entries = chain(9);
    let head = verify_chain(entries.clone(), None).unwrap();
    assert_eq!(head.seq, 9);
    assert_eq!(verify_chain(entries, Some(&head)), Ok(head));
    assert_eq!(verify_chain([], None), Ok(Head::default()));
}

#[test]
fn edits_removals_swaps_insertions_and_cuts_are_found_where_they_are() {
    let good = chain(9);
    let head = verify_chain(good.clone(), None).unwrap();
    let edit = |at: usize, change: fn(&mut AuditEntry)| {
        let mut entries = good.clone();
        change(&mut entries[at]);
        entries
    };
    let mut removed = good.clone();
    removed.remove(4);
    let mut swapped = good.clone();
    swapped.swap(2, 3);
    let mut doubled = good.clone();
    doubled.insert(5, good[5].clone());
    let rehashed = edit(6, |entry| {
        entry.who = "token:other".into();
        entry.hash = entry.compute_hash();
    });
    let mut longer = good.clone();
    longer.push(AuditEntry::link(head, &AuditDraft::default()));
    let mut other_end = good[..8].to_vec();
    other_end.push(AuditEntry::link(good[7].head(), &AuditDraft::default()));
    for (name, entries, seq, how) in [
        ("who edited", edit(0, |entry| entry.who = "token:other".into()), 1, Break::Edited),
        ("note added", edit(3, |entry| entry.note = Some(String::new())), 4, Break::Edited),
        ("text moved", edit(1, |entry| entry.after = entry.before.take()), 2, Break::Edited),
        ("number edited", edit(3, |entry| entry.seq = 40), 4, Break::WrongNumber { found: 40 }),
        ("edited and hashed again", rehashed, 8, Break::WrongLink),
        ("removed", removed, 5, Break::WrongNumber { found: 6 }),
        ("swapped", swapped, 3, Break::WrongNumber { found: 4 }),
        ("doubled", doubled, 7, Break::WrongNumber { found: 6 }),
        ("cut", good[..7].to_vec(), 8, Break::Cut { head: 9 }),
        ("emptied", vec![], 1, Break::Cut { head: 9 }),
        ("longer", longer, 10, Break::BeyondHead { head: 9 }),
        ("another end", other_end, 9, Break::OtherHead),
    ] {
        assert_eq!(verify_chain(entries, Some(&head)), Err(ChainBreak { seq, how }), "{name}");
    }
}

#[test]
fn hashes_are_read_only_in_their_one_form() {
    let hash = chain(1)[0].hash;
    assert_eq!(hash.to_string().parse::<AuditHash>().unwrap(), hash);
    for wrong in ["", "12", &hash.to_string().to_uppercase().replace(char::is_numeric, "A"), &"é".repeat(32)]
    {
        assert!(wrong.parse::<AuditHash>().is_err(), "{wrong}");
    }
}

/// The encoding is part of the stored format: a change here breaks every chain in the field.
#[test]
fn the_first_entry_of_a_known_chain_keeps_its_hash() {
    let text = serde_json::to_string(&chain(2)[1]).unwrap();
    assert_eq!(text, include_str!("golden/v1-audit-entry.json").trim_end());
}
