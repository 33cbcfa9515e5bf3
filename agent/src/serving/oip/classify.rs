//! The classification extension: the best `k` of each row as `value:index[:label]`.

use super::OipError;
use crate::monitor::classes::numbers;
use bytes::Bytes;
use edgefleet_shared::tensor::{Datatype, Tensor};

/// Turns `[batch, n]` (or `[n]`) into BYTES `[batch, k]` (or `[k]`); fewer than `k` if there are
/// fewer. Values are written with six decimals, as Triton does. Equal values keep their order.
///
/// # Errors
/// [`OipError::Bad`] if the output holds no numbers.
pub fn classify(output: &Tensor, k: usize, batched: bool, labels: &[String]) -> Result<Tensor, OipError> {
    let name = output.name();
    let Some(values) = numbers(output) else {
        return Err(OipError::Bad(format!("output `{name}` is {}, which has no best", output.datatype())));
    };
    let batch = if batched { output.shape().first().copied().unwrap_or(1) } else { 1 };
    let classes = values.len().checked_div(batch).unwrap_or(0);
    let k = k.min(classes);
    let labels = if labels.len() == classes { labels } else { &[] };
    let mut raw = Vec::new();
    for row in values.chunks_exact(classes.max(1)) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        for index in order.into_iter().take(k) {
            let mut text = format!("{:.6}:{index}", row[index]);
            if let Some(label) = labels.get(index) {
                text.push(':');
                text.push_str(label);
            }
            raw.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            raw.extend(text.into_bytes());
        }
    }
    let shape = if batched { vec![batch, k] } else { vec![k] };
    Tensor::new(name, Datatype::Bytes, shape, Bytes::from(raw)).map_err(|e| OipError::Bad(e.to_string()))
}
