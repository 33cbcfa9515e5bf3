//! What is known of a tensor before any request: type and shape. Steps are checked against it when the
//! pipeline is compiled; -1 is a dimension only a request knows.

use edgefleet_shared::{
    bundle::{TensorSpec, pipeline::Color},
    tensor::Datatype,
};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Images {
        batch: i64,
        color: Color,
        /// Height and width; `None` where they are the image's own.
        size: Option<[usize; 2]>,
    },
    Array {
        datatype: Datatype,
        shape: Vec<i64>,
        /// Whether it carries the placements of images.
        placed: bool,
    },
}

pub(super) fn channels(color: Color) -> usize {
    match color {
        Color::Rgb | Color::Bgr => 3,
        Color::Gray => 1,
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Images { size: Some([h, w]), .. } => write!(f, "images of {h} x {w}"),
            Self::Images { size: None, .. } => f.write_str("images of any size"),
            Self::Array { datatype, shape, .. } => write!(f, "{datatype} {shape:?}"),
        }
    }
}

impl Kind {
    pub(super) fn of(spec: &TensorSpec) -> Self {
        Self::Array { datatype: spec.datatype, shape: spec.shape.clone(), placed: false }
    }
    pub(super) fn array(datatype: Datatype, shape: Vec<i64>) -> Self {
        Self::Array { datatype, shape, placed: false }
    }

    /// Datatype and shape of a tensor that is not a list of images.
    pub(super) fn as_array(&self) -> Result<(Datatype, &[i64]), String> {
        match self {
            Self::Array { datatype, shape, .. } => Ok((*datatype, shape)),
            Self::Images { .. } => Err(format!("works on numbers, not on {self}; put `layout` before it")),
        }
    }

    /// The same, of numbers.
    pub(super) fn as_numbers(&self) -> Result<(Datatype, &[i64]), String> {
        let (datatype, shape) = self.as_array()?;
        if datatype == Datatype::Bytes {
            return Err(format!("works on numbers, not on {self}"));
        }
        Ok((datatype, shape))
    }

    /// Images, or a UINT8 tensor `[batch, height, width, 1 or 3]`, which counts as RGB or gray.
    pub(super) fn as_images(&self) -> Result<(i64, Color, Option<[usize; 2]>), String> {
        match self {
            Self::Images { batch, color, size } => Ok((*batch, *color, *size)),
            Self::Array { datatype: Datatype::Uint8, shape, .. } => match shape[..] {
                [batch, height, width, channels @ (1 | 3)] => {
                    let side = |dim: i64| usize::try_from(dim).ok();
                    let size = side(height).zip(side(width)).map(|(h, w)| [h, w]);
                    Ok((batch, if channels == 1 { Color::Gray } else { Color::Rgb }, size))
                }
                _ => Err(format!("works on images or UINT8 [batch, height, width, 1 or 3], not on {self}")),
            },
            Self::Array { .. } => {
                Err(format!("works on images or UINT8 [batch, height, width, 1 or 3], not on {self}"))
            }
        }
    }

    pub(super) fn placed(&self) -> bool {
        matches!(self, Self::Images { .. } | Self::Array { placed: true, .. })
    }

    /// Whether every value of this kind, or at least some, may be one of `spec`.
    pub(super) fn fits(&self, spec: &TensorSpec) -> Result<(), String> {
        let wanted = format!("{} {:?}", spec.datatype, spec.shape);
        let no = || format!("`{}` is {self}, not {wanted}", spec.name);
        let Self::Array { datatype, shape, .. } = self else { return Err(no()) };
        let pairs = shape.iter().zip(&spec.shape);
        let fits = *datatype == spec.datatype
            && shape.len() == spec.shape.len()
            && pairs.into_iter().all(|(have, want)| have == want || *have == -1 || *want == -1);
        if fits { Ok(()) } else { Err(no()) }
    }
}

/// Product of dimensions; -1 if one is open or it overflows.
pub(super) fn product(dims: &[i64]) -> i64 {
    dims.iter().try_fold(1i64, |n, dim| if *dim < 0 { None } else { n.checked_mul(*dim) }).unwrap_or(-1)
}

/// Whether so many parameters fit a dimension: one for all, or one for each.
pub(super) fn per_element(what: &str, found: usize, shape: &[i64], axis: usize) -> Result<(), String> {
    let dim = shape[axis];
    if found == 1 || dim == -1 || dim == found as i64 {
        return Ok(());
    }
    Err(format!("`{what}` has {found} numbers, but axis {axis} of {shape:?} has {dim} elements"))
}
