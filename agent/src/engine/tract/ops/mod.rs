//! Operators that tract lacks, computes wrongly or computes slowly; registered over its own.
//!
//! Each is written after the ONNX text and, where that is silent, after ONNX Runtime's answers, which the
//! fixtures of `models/fixtures/operators` hold. Attributes come from a file nobody vouches for: every one is checked
//! when the model is read, and what contradicts itself is an error that names the node.

mod adjusted;
mod attributes;
mod bits;
mod branch;
mod columns;
mod kernel;
mod labels;
mod linear;
mod loss;
mod lp_pool;
mod lrn;
mod ngrams;
mod roi_align;
mod scale;
mod scores;
mod sequence;
mod svm;
mod texts;
mod trees;

use tract_onnx::model::OnnxOpRegister;

/// Operators of `ai.onnx.ml` that can be served: these and tract's CategoryMapper.
pub(super) const ML: [&str; 17] = [
    "ArrayFeatureExtractor",
    "Binarizer",
    "CategoryMapper",
    "FeatureVectorizer",
    "Imputer",
    "LabelEncoder",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "OneHotEncoder",
    "SVMClassifier",
    "SVMRegressor",
    "Scaler",
    "TreeEnsemble",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
    "ZipMap",
];

pub(super) fn register(register: &mut OnnxOpRegister) {
    register.insert("ArrayFeatureExtractor", kernel::build::<columns::ArrayFeatureExtractor>);
    register.insert("Binarizer", kernel::build::<scale::Binarizer>);
    register.insert("FeatureVectorizer", kernel::build::<columns::FeatureVectorizer>);
    register.insert("Imputer", kernel::build::<scale::Imputer>);
    register.insert("Normalizer", kernel::build::<scale::Normalizer>);
    register.insert("Scaler", kernel::build::<scale::Scaler>);
    register.insert("LabelEncoder", kernel::build::<labels::LabelEncoder>);
    register.insert("OneHotEncoder", kernel::build::<labels::OneHotEncoder>);
    register.insert("ZipMap", kernel::build::<labels::ZipMap>);
    register.insert("LinearClassifier", kernel::build::<linear::Classifier>);
    register.insert("LinearRegressor", kernel::build::<linear::Regressor>);
    register.insert("SVMClassifier", kernel::build::<svm::Classifier>);
    register.insert("SVMRegressor", kernel::build::<svm::Regressor>);
    register.insert("TreeEnsemble", kernel::build::<trees::Ensemble>);
    register.insert("TreeEnsembleClassifier", kernel::build::<trees::Classifier>);
    register.insert("TreeEnsembleRegressor", kernel::build::<trees::Regressor>);
    adjusted::register(register);
    register.insert("BitShift", kernel::build::<bits::BitShift>);
    register.insert("LpPool", kernel::build::<lp_pool::LpPool>);
    register.insert("LRN", kernel::build::<lrn::Lrn>);
    register.insert("NegativeLogLikelihoodLoss", kernel::build::<loss::NegativeLogLikelihood>);
    register.insert("SoftmaxCrossEntropyLoss", kernel::build::<loss::SoftmaxCrossEntropy>);
    register.insert("ReverseSequence", kernel::build::<sequence::ReverseSequence>);
    register.insert("RoiAlign", kernel::build::<roi_align::RoiAlign>);
    register.insert("StringConcat", kernel::build::<texts::StringConcat>);
    register.insert("TfIdfVectorizer", kernel::build::<ngrams::TfIdfVectorizer>);
    register.insert("If", branch::build);
}
