//! The operations of a pipeline and their parameters. `docs/pipelines.md` says what each computes.

use crate::tensor::Datatype;
use serde::{Deserialize, Serialize};

/// Order of an image's channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Color {
    #[default]
    Rgb,
    Bgr,
    Gray,
}

/// Resampling, bit for bit as the named library does it with 8-bit images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    PilNearest,
    PilBox,
    PilBilinear,
    PilHamming,
    PilBicubic,
    PilLanczos,
    CvNearest,
    CvLinear,
    CvArea,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    Nchw,
    Nhwc,
}

/// Where a letterbox puts the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anchor {
    #[default]
    Center,
    TopLeft,
}

/// Weights of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Taper {
    #[default]
    None,
    Hann,
    Hamming,
}

/// What a signal is extended by, half a window on both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pad {
    #[default]
    None,
    Zero,
    Reflect,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spectrum {
    #[default]
    Magnitude,
    Power,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MelNorm {
    #[default]
    Slaney,
    None,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogScale {
    #[default]
    Ln,
    Log10,
    Log1p,
    /// 10 log10, of power.
    Db,
}

/// Layout of a YOLO export's one output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Yolo {
    /// `[batch, boxes, 5 + classes]`: centre, size, objectness, classes.
    V5,
    /// `[batch, 4 + classes, boxes]`: centre, size, classes.
    V8,
}

/// Default boxes of one feature map of an SSD; lengths in pixels of the model's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriorLevel {
    /// Rows and columns of the feature map.
    pub map: [u32; 2],
    /// Pixels from one cell to the next.
    pub step: f64,
    pub min_size: f64,
    /// Of the next level: gives one more square box, of the geometric mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<f64>,
    /// Each gives two boxes, itself and its inverse.
    #[serde(default)]
    pub ratios: Vec<f64>,
}

/// A value to be found in a column of categories.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Category {
    Number(i64),
    Text(String),
}

/// One number for all, or one for each element along an axis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Numbers {
    One(f64),
    Each(Vec<f64>),
}
impl Numbers {
    pub fn as_slice(&self) -> &[f64] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Each(each) => each,
        }
    }
}

/// `[height, width]` in pixels.
pub type Size = [u32; 2];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    // Images.
    DecodeImage {
        #[serde(default)]
        color: Color,
        /// Turn the image as its EXIF orientation says.
        #[serde(default = "yes")]
        orient: bool,
        #[serde(default = "default_max_pixels")]
        max_pixels: u64,
    },
    Crop {
        /// Height and width around the centre.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        center: Option<Size>,
        /// Left, top, right, bottom in pixels.
        #[serde(default, rename = "box", skip_serializing_if = "Option::is_none")]
        area: Option<[u32; 4]>,
    },
    Resize {
        /// Exactly this; the aspect ratio may change.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<Size>,
        /// The shorter side; the aspect ratio stays.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shortest: Option<u32>,
        filter: Filter,
    },
    Letterbox {
        size: Size,
        filter: Filter,
        #[serde(default = "grey")]
        fill: u8,
        /// Whether smaller images are enlarged.
        #[serde(default = "yes")]
        enlarge: bool,
        #[serde(default)]
        anchor: Anchor,
    },
    Color {
        order: Color,
    },
    Layout {
        order: Layout,
    },

    // Numbers and their arrangement.
    Scale {
        #[serde(default = "one")]
        mul: f64,
        #[serde(default)]
        add: f64,
    },
    Normalize {
        mean: Numbers,
        std: Numbers,
        /// Multiplies first.
        #[serde(default = "one")]
        scale: f64,
        #[serde(default = "last")]
        axis: i64,
    },
    Clip {
        min: f64,
        max: f64,
    },
    Cast {
        datatype: Datatype,
    },
    Dequantize {
        scale: Numbers,
        #[serde(default = "zero")]
        zero_point: Numbers,
        #[serde(default = "last")]
        axis: i64,
    },
    Transpose {
        axes: Vec<usize>,
    },
    Reshape {
        /// 0 keeps a dimension, one -1 takes what is left.
        shape: Vec<i64>,
    },

    // Tables.
    Select {
        columns: Vec<usize>,
    },
    Concat {
        parts: Vec<String>,
    },
    Impute {
        value: Numbers,
        /// Besides NaN.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        missing: Option<f64>,
    },
    Standardize {
        mean: Numbers,
        std: Numbers,
    },
    CategoryMap {
        values: Vec<Category>,
        /// Index of what is not among them; absent: such a request is refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        other: Option<i64>,
    },
    OneHot {
        depth: usize,
        /// Whether an index outside gives a row of zeros instead of an error.
        #[serde(default)]
        zeros: bool,
    },

    // Signals.
    Window {
        length: usize,
        hop: usize,
        #[serde(default)]
        taper: Taper,
        #[serde(default)]
        pad: Pad,
    },
    Fft {
        #[serde(default)]
        output: Spectrum,
    },
    Mel {
        /// Samples per second.
        rate: f64,
        bins: usize,
        #[serde(default)]
        fmin: f64,
        /// Absent: half the rate.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fmax: Option<f64>,
        #[serde(default)]
        norm: MelNorm,
        /// HTK's formula instead of Slaney's.
        #[serde(default)]
        htk: bool,
    },
    Log {
        #[serde(default)]
        scale: LogScale,
        /// Smaller values count as this.
        #[serde(default = "tiny")]
        floor: f64,
        /// Decibels below the largest of a row that are kept; `db` only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        top_db: Option<f64>,
    },

    // Classes.
    Softmax {
        #[serde(default = "last")]
        axis: i64,
        #[serde(default = "one")]
        temperature: f64,
    },
    Sigmoid {},
    Argmax {
        #[serde(default = "last")]
        axis: i64,
    },
    TopK {
        k: usize,
        /// Name of the tensor of indexes.
        indices: String,
    },
    Threshold {
        at: f64,
    },
    Abstain {
        /// Name of the tensor of scores, `[batch, classes]`.
        scores: String,
        /// Least best score.
        #[serde(default)]
        min: f64,
        /// Least distance between the best and the second.
        #[serde(default)]
        margin: f64,
    },
    Label {
        /// Absent: the labels of the bundle.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        names: Option<Vec<String>>,
        /// Instead of a name where the class is -1.
        #[serde(default)]
        none: String,
    },
    Debounce {
        /// So many of ...
        k: usize,
        /// ... so many last answers must agree before the answer changes.
        n: usize,
    },

    // Boxes: `[batch, boxes, 6]` of left, top, right, bottom, score, class.
    DecodeYolo {
        version: Yolo,
        score: f64,
        /// Most boxes of an image that go on, best first.
        #[serde(default = "default_candidates")]
        candidates: usize,
    },
    DecodeSsd {
        /// Name of the tensor of class scores, `[batch, priors, classes]`.
        scores: String,
        priors: Vec<PriorLevel>,
        /// Height and width of the model's input.
        size: Size,
        #[serde(default = "default_variances")]
        variances: [f64; 2],
        #[serde(default)]
        clip: bool,
        score: f64,
        /// Class that means nothing is there; absent: every class is something.
        #[serde(default = "class_zero")]
        background: Option<usize>,
        #[serde(default = "default_candidates")]
        candidates: usize,
    },
    Nms {
        iou: f64,
        max: usize,
        #[serde(default)]
        score: f64,
        /// Whether boxes of different classes suppress each other.
        #[serde(default)]
        across_classes: bool,
    },
    ScaleBoxes {
        /// Model input whose placement counts; absent: the only one made of images.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<String>,
        #[serde(default = "yes")]
        clip: bool,
    },

    // Words.
    Template {
        /// Names in braces are replaced; `{{` and `}}` are braces.
        text: String,
    },
}

fn yes() -> bool {
    true
}
fn one() -> f64 {
    1.0
}
fn zero() -> Numbers {
    Numbers::One(0.0)
}
fn last() -> i64 {
    -1
}
fn tiny() -> f64 {
    1e-10
}
/// The border of Ultralytics' letterbox.
fn grey() -> u8 {
    114
}
/// A camera of 16 megapixels; 48 MB decoded.
fn default_max_pixels() -> u64 {
    16 << 20
}
fn default_candidates() -> usize {
    1000
}
/// Of the first SSD.
fn default_variances() -> [f64; 2] {
    [0.1, 0.2]
}
fn class_zero() -> Option<usize> {
    Some(0)
}

impl Op {
    /// As the manifest writes it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::DecodeImage { .. } => "decode_image",
            Self::Crop { .. } => "crop",
            Self::Resize { .. } => "resize",
            Self::Letterbox { .. } => "letterbox",
            Self::Color { .. } => "color",
            Self::Layout { .. } => "layout",
            Self::Scale { .. } => "scale",
            Self::Normalize { .. } => "normalize",
            Self::Clip { .. } => "clip",
            Self::Cast { .. } => "cast",
            Self::Dequantize { .. } => "dequantize",
            Self::Transpose { .. } => "transpose",
            Self::Reshape { .. } => "reshape",
            Self::Select { .. } => "select",
            Self::Concat { .. } => "concat",
            Self::Impute { .. } => "impute",
            Self::Standardize { .. } => "standardize",
            Self::CategoryMap { .. } => "category_map",
            Self::OneHot { .. } => "one_hot",
            Self::Window { .. } => "window",
            Self::Fft { .. } => "fft",
            Self::Mel { .. } => "mel",
            Self::Log { .. } => "log",
            Self::Softmax { .. } => "softmax",
            Self::Sigmoid {} => "sigmoid",
            Self::Argmax { .. } => "argmax",
            Self::TopK { .. } => "top_k",
            Self::Threshold { .. } => "threshold",
            Self::Abstain { .. } => "abstain",
            Self::Label { .. } => "label",
            Self::Debounce { .. } => "debounce",
            Self::DecodeYolo { .. } => "decode_yolo",
            Self::DecodeSsd { .. } => "decode_ssd",
            Self::Nms { .. } => "nms",
            Self::ScaleBoxes { .. } => "scale_boxes",
            Self::Template { .. } => "template",
        }
    }
    /// Whether an answer depends on the ones before it.
    pub fn is_over_time(&self) -> bool {
        matches!(self, Self::Debounce { .. })
    }
}
