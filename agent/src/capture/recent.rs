//! The last requests whole, for what is known late: a shadow's disagreement, a label that says "wrong".
//! Only slots with such a strategy hold any.

use super::{
    decide::{LateDecider, Reasons},
    describe::{Chosen, Why},
    held::rows_of,
    scores::{RowScores, UNKNOWN},
};
use crate::monitor::{Class, Moment, Subject};
use edgefleet_shared::{
    capture::{CapturePolicy, Reason},
    ids::PredictionId,
    tensor::Tensor,
};
use std::{collections::VecDeque, sync::Arc};

/// Requests held, and their bytes.
const MAX_REQUESTS: usize = 512;
const MAX_BYTES: usize = 8 << 20;

/// A request as it was answered.
pub struct Answered {
    pub first: PredictionId,
    pub subject: Arc<Subject>,
    pub at: Moment,
    pub rows: usize,
    pub classes: Vec<Class>,
    pub scores: Vec<RowScores>,
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<Tensor>,
}

impl Answered {
    fn bytes(&self) -> usize {
        self.inputs.iter().chain(&self.outputs).map(|tensor| tensor.data().len()).sum()
    }
}

#[derive(Default)]
pub struct Recents {
    held: VecDeque<Answered>,
    bytes: usize,
    late: LateDecider,
}

impl Recents {
    pub fn push(&mut self, answered: Answered) {
        let bytes = answered.bytes();
        if bytes > MAX_BYTES {
            return;
        }
        while self.held.len() >= MAX_REQUESTS || self.bytes + bytes > MAX_BYTES {
            let Some(old) = self.held.pop_front() else { break };
            self.bytes -= old.bytes();
        }
        self.bytes += bytes;
        self.held.push_back(answered);
    }

    /// The row with this sequence, if it is still held and `policy` wants it for this reason. A label that agrees
    /// with the answer is no reason.
    pub fn choose(
        &mut self,
        policy: &CapturePolicy,
        sequence: u64,
        reason: Reason,
        label: Option<&str>,
        mono_ms: u64,
    ) -> Option<Chosen> {
        let row_of = |answered: &Answered| {
            let row = usize::try_from(sequence.checked_sub(answered.first.sequence)?).ok()?;
            (row < answered.classes.len()).then_some(row)
        };
        let (answered, row) = self.held.iter().rev().find_map(|a| Some((a, row_of(a)?)))?;
        let class = answered.classes.get(row)?.index;
        if let Some(label) = label
            && answered.subject.class_index(label) == Some(class)
        {
            return None;
        }
        let inputs = rows_of(&answered.inputs, answered.rows, row)?;
        let outputs = rows_of(&answered.outputs, answered.rows, row)?;
        if !self.late.decide(policy, reason, mono_ms) {
            return None;
        }
        let mut reasons = Reasons::default();
        reasons.add(reason);
        Some(Chosen {
            prediction: PredictionId { sequence, ..answered.first.clone() },
            subject: answered.subject.clone(),
            at: answered.at,
            why: Why::Late(reasons),
            class,
            scores: answered.scores.get(row).copied().unwrap_or(UNKNOWN),
            inputs,
            outputs,
            label: label.map(|label| label.chars().take(200).collect()),
        })
    }
}
