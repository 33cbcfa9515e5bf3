//! An answer for programs that want the class and the numbers, not the protocol: one line of JSON.

use super::{OipError, json::write_data, response::Delivered};
use crate::monitor::Class;
use serde::Serialize;

/// Everything about an answer but its tensors.
#[derive(Serialize)]
pub struct Compact<'a> {
    pub slot: &'a str,
    pub bundle: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction_id: Option<&'a str>,
}

impl Compact<'_> {
    /// `classes`: one a row, none if the answer is no class. One row has `label` and `confidence`, several have
    /// `labels` and `confidences`; what the model does not say is `null`. Outputs are flat lists by name.
    ///
    /// # Errors
    /// [`OipError`] if an output has no form in JSON.
    pub fn write(
        &self,
        classes: &[Class],
        labels: &[String],
        outputs: &[Delivered<'_>],
    ) -> Result<Vec<u8>, OipError> {
        let unwritable = |e: serde_json::Error| OipError::Model(format!("the answer cannot be written: {e}"));
        let label = |class: &Class| {
            let known = usize::try_from(class.index).ok().and_then(|index| labels.get(index));
            known.cloned().unwrap_or_else(|| class.index.to_string())
        };
        let confidence = |class: &Class| class.confidence.is_finite().then_some(class.confidence);
        let mut json = serde_json::to_vec(self).map_err(unwritable)?;
        json.pop(); // the closing brace: more follows
        match classes {
            [] => {}
            [class] => {
                json.extend_from_slice(b",\"label\":");
                serde_json::to_writer(&mut json, &label(class)).map_err(unwritable)?;
                json.extend_from_slice(b",\"confidence\":");
                serde_json::to_writer(&mut json, &confidence(class)).map_err(unwritable)?;
            }
            several => {
                json.extend_from_slice(b",\"labels\":");
                let all: Vec<_> = several.iter().map(label).collect();
                serde_json::to_writer(&mut json, &all).map_err(unwritable)?;
                json.extend_from_slice(b",\"confidences\":");
                let all: Vec<_> = several.iter().map(confidence).collect();
                serde_json::to_writer(&mut json, &all).map_err(unwritable)?;
            }
        }
        json.extend_from_slice(b",\"outputs\":{");
        for (index, output) in outputs.iter().enumerate() {
            if index > 0 {
                json.push(b',');
            }
            serde_json::to_writer(&mut json, output.tensor.name()).map_err(unwritable)?;
            json.push(b':');
            write_data(&output.tensor, &mut json)?;
        }
        json.extend_from_slice(b"}}");
        Ok(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use edgefleet_shared::tensor::{Datatype, Tensor};
    use std::borrow::Cow;

    #[test]
    fn one_row_has_a_label_and_several_have_labels() {
        let compact =
            Compact { slot: "digits", bundle: "digits@7", id: Some("a \"b\".jpg"), prediction_id: None };
        let tensor = Tensor::new("y", Datatype::Uint8, vec![2], Bytes::from_static(&[1, 2])).unwrap();
        let outputs = [Delivered { tensor: Cow::Owned(tensor), is_binary: false, place: None }];
        let labels = ["no".to_owned(), "yes".to_owned()];
        let class = |index, confidence| Class { index, confidence };
        for (classes, wanted) in [
            (vec![], ""),
            (vec![class(1, 0.5)], r#","label":"yes","confidence":0.5"#),
            (vec![class(7, f32::NAN)], r#","label":"7","confidence":null"#),
            (vec![class(0, 0.25), class(1, f32::NAN)], r#","labels":["no","yes"],"confidences":[0.25,null]"#),
        ] {
            let text = String::from_utf8(compact.write(&classes, &labels, &outputs).unwrap()).unwrap();
            let head = r#"{"slot":"digits","bundle":"digits@7","id":"a \"b\".jpg""#;
            assert_eq!(text, format!(r#"{head}{wanted},"outputs":{{"y":[1,2]}}}}"#));
        }
    }
}
