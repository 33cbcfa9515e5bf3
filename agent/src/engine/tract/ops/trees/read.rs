//! Reads a forest out of a node's attributes, in the two forms ONNX has for it.

use super::super::attributes::{index, int, ints, numbers, same_length, strings, tensor, width};
use super::forest::{Child, Grove, Mode, Split, Vote};
use std::collections::HashMap;
use tract_onnx::{model::ParsingContext, pb::NodeProto, prelude::*, tract_hir::internal::*};

/// Columns of a row; a bound, so that an index fits 32 bits.
const MAX_FEATURES: usize = 1 << 24;

/// The form of TreeEnsembleClassifier (`side` is "class") and TreeEnsembleRegressor ("target"): one list
/// per property, a row for each node, children by the number they have in their tree. Second: whether any
/// of it is in double precision.
#[allow(clippy::needless_range_loop, reason = "several lists are read in step")]
pub(super) fn by_node(
    ctx: &ParsingContext,
    node: &NodeProto,
    side: &str,
    targets: usize,
) -> TractResult<(Grove, bool)> {
    let (trees, numbers_in_tree) = (ints(node, "nodes_treeids"), ints(node, "nodes_nodeids"));
    let (features, modes) = (ints(node, "nodes_featureids"), strings(node, "nodes_modes")?);
    let (yes, no) = (ints(node, "nodes_truenodeids"), ints(node, "nodes_falsenodeids"));
    let missing = ints(node, "nodes_missing_value_tracks_true");
    let (thresholds, double) = numbers(ctx, node, "nodes_values")?;
    let count = same_length(&[
        ("nodes_treeids", trees.len()),
        ("nodes_nodeids", numbers_in_tree.len()),
        ("nodes_featureids", features.len()),
        ("nodes_modes", modes.len()),
        ("nodes_truenodeids", yes.len()),
        ("nodes_falsenodeids", no.len()),
        ("nodes_values", thresholds.len()),
    ])?;
    ensure!(count > 0, "`nodes_treeids` is empty: there are no trees");
    ensure!(
        missing.is_empty() || missing.len() == count,
        "`nodes_missing_value_tracks_true` has {} elements, but `nodes_treeids` {count}",
        missing.len()
    );

    // Where each node will be, and each tree's first node: its root.
    let mut places: HashMap<(i64, i64), Child> = HashMap::with_capacity(count);
    let mut roots: Vec<(i64, Child)> = Vec::new();
    let mut known = std::collections::HashSet::new();
    let (mut splits, mut leaves) = (0, 0);
    for at in 0..count {
        let place = if modes[at] == "LEAF" {
            leaves += 1;
            Child::Leaf(leaves - 1)
        } else {
            splits += 1;
            Child::Split(splits - 1)
        };
        let (tree, number) = (trees[at], numbers_in_tree[at]);
        ensure!(places.insert((tree, number), place).is_none(), "tree {tree} has two nodes {number}");
        if known.insert(tree) {
            roots.push((tree, place));
        }
    }
    let mut grove = Grove {
        splits: Vec::with_capacity(splits),
        leaves,
        roots: roots.into_iter().map(|(_, root)| root).collect(),
        votes: Vec::new(),
        targets,
    };
    for at in (0..count).filter(|at| modes[*at] != "LEAF") {
        let (tree, number) = (trees[at], numbers_in_tree[at]);
        let child = |to: i64| {
            let found = places.get(&(tree, to)).copied();
            found.with_context(|| {
                format!("node {number} of tree {tree} leads to node {to}, which is not there")
            })
        };
        grove.splits.push(Split {
            feature: index("nodes_featureids", features[at], MAX_FEATURES)? as u32,
            threshold: thresholds[at],
            mode: mode(modes[at])?,
            missing_is_true: missing.get(at).is_some_and(|track| *track == 1),
            set: Vec::new(),
            next: [child(no[at])?, child(yes[at])?],
        });
    }

    let name = |what: &str| format!("{side}_{what}");
    let (ids, voters) = (ints(node, &name("ids")), ints(node, &name("nodeids")));
    let (of_trees, (weights, double_too)) =
        (ints(node, &name("treeids")), numbers(ctx, node, &name("weights"))?);
    let votes = same_length(&[
        (&name("ids"), ids.len()),
        (&name("nodeids"), voters.len()),
        (&name("treeids"), of_trees.len()),
        (&name("weights"), weights.len()),
    ])?;
    for at in 0..votes {
        let (tree, number) = (of_trees[at], voters[at]);
        let Some(place) = places.get(&(tree, number)) else {
            bail!("`{}` names node {number} of tree {tree}, which is not there", name("nodeids"));
        };
        // Weights of a split are never asked for.
        if let Child::Leaf(leaf) = *place {
            let target = index(&name("ids"), ids[at], targets)? as u32;
            grove.votes.push(Vote { leaf, target, weight: weights[at] });
        }
    }
    Ok((grove, double || double_too))
}

fn mode(name: &str) -> TractResult<Mode> {
    Ok(match name {
        "BRANCH_LEQ" => Mode::Leq,
        "BRANCH_LT" => Mode::Lt,
        "BRANCH_GTE" => Mode::Gte,
        "BRANCH_GT" => Mode::Gt,
        "BRANCH_EQ" => Mode::Eq,
        "BRANCH_NEQ" => Mode::Neq,
        other => bail!("`nodes_modes` has `{other}`, which ONNX does not know"),
    })
}

/// The form of TreeEnsemble: inner nodes and leaves in lists of their own, children by index.
#[allow(clippy::needless_range_loop, reason = "several lists are read in step")]
pub(super) fn by_index(ctx: &ParsingContext, node: &NodeProto) -> TractResult<Grove> {
    let list = |name: &str| -> TractResult<Vec<f64>> {
        let found = tensor(ctx, node, name)?;
        let found = found.map(|t| t.cast_to::<f64>().map(|t| t.into_owned())).transpose()?;
        found.map_or(Ok(vec![]), |t| Ok(super::super::kernel::slice::<f64>(&t)?.to_vec()))
    };
    let targets = width("n_targets", int(node, "n_targets", 1))?;
    let (features, modes) = (ints(node, "nodes_featureids"), list("nodes_modes")?);
    let (thresholds, missing) = (list("nodes_splits")?, ints(node, "nodes_missing_value_tracks_true"));
    let (yes, yes_leaf) = (ints(node, "nodes_truenodeids"), ints(node, "nodes_trueleafs"));
    let (no, no_leaf) = (ints(node, "nodes_falsenodeids"), ints(node, "nodes_falseleafs"));
    let (owners, weights) = (ints(node, "leaf_targetids"), list("leaf_weights")?);
    let count = same_length(&[
        ("nodes_featureids", features.len()),
        ("nodes_modes", modes.len()),
        ("nodes_splits", thresholds.len()),
        ("nodes_truenodeids", yes.len()),
        ("nodes_trueleafs", yes_leaf.len()),
        ("nodes_falsenodeids", no.len()),
        ("nodes_falseleafs", no_leaf.len()),
    ])?;
    let leaves = same_length(&[("leaf_targetids", owners.len()), ("leaf_weights", weights.len())])?;
    ensure!(
        missing.is_empty() || missing.len() == count,
        "`nodes_missing_value_tracks_true` has {} elements, but `nodes_splits` {count}",
        missing.len()
    );
    let mut sets = list("membership_values")?.into_iter();

    let child = |name: &str, to: i64, is_leaf: i64| -> TractResult<Child> {
        Ok(match is_leaf {
            0 => Child::Split(index(name, to, count)?),
            _ => Child::Leaf(index(name, to, leaves)?),
        })
    };
    let mut splits = Vec::with_capacity(count);
    for at in 0..count {
        let all = [Mode::Leq, Mode::Lt, Mode::Gte, Mode::Gt, Mode::Eq, Mode::Neq, Mode::Member];
        let mode = all.get(modes[at] as usize).copied();
        let mode = mode.with_context(|| format!("`nodes_modes` has {}, not 0 to 6", modes[at]))?;
        // The sets of all member nodes, one after another, each ended by NaN.
        let set = match mode {
            Mode::Member => sets.by_ref().take_while(|value| !value.is_nan()).collect(),
            _ => Vec::new(),
        };
        splits.push(Split {
            feature: index("nodes_featureids", features[at], MAX_FEATURES)? as u32,
            threshold: thresholds[at],
            mode,
            missing_is_true: missing.get(at).is_some_and(|track| *track == 1),
            set,
            next: [
                child("nodes_falsenodeids", no[at], no_leaf[at])?,
                child("nodes_truenodeids", yes[at], yes_leaf[at])?,
            ],
        });
    }
    let vote = |(leaf, (owner, weight)): (usize, (&i64, f64))| -> TractResult<Vote> {
        Ok(Vote { leaf, target: index("leaf_targetids", *owner, targets)? as u32, weight })
    };
    let votes = owners.iter().zip(weights).enumerate().map(vote).collect::<TractResult<_>>()?;
    // A tree that is a lone leaf is written as a node whose two ways lead to that leaf.
    let root = |at: &i64| index("tree_roots", *at, count).map(Child::Split);
    let roots: Vec<Child> = ints(node, "tree_roots").iter().map(root).collect::<TractResult<_>>()?;
    ensure!(!roots.is_empty(), "`tree_roots` is empty: there are no trees");
    Ok(Grove { splits, leaves, roots, votes, targets })
}
