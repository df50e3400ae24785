//! The names that a notebook's first cell wants: `use lowbit::prelude::*;`. polars' are those of its tutorials, so that a frame
//! can be asked without a line of `use`.

pub use crate::corpus::Corpus;
pub use crate::display::{EvcxrDisplay, show};
pub use crate::error::{Error, Result};
pub use crate::family::Config;
pub use crate::figure::{self, Figure, picture};
pub use crate::frame::Frame;
pub use crate::layer::state::State;
pub use crate::measure::cost::Phase;
pub use crate::measure::{Measure, every::*};
pub use crate::model::sampling::Sampling;
pub use crate::model::tokenizer::Tokenizer;
pub use crate::model::{Loading, Model, Positions};
pub use crate::quantize::probe::Grain;
pub use crate::quantize::{Budget, Calibration, Hessians, Observer, Quantizing, Scheme};
pub use crate::record::{Reading, Run};
pub use crate::report::Report;
pub use crate::stats;
pub use crate::study::Study;
pub use crate::threads::{set_threads, threads};
pub use crate::train::Training;
pub use crate::widget::{button, choice, slider, toggle};
pub use candle_core::{DType, Device, Tensor};
pub use polars::prelude::{
    AnyValue, ChunkAgg, ChunkCompareEq, ChunkCompareIneq, ChunkUnique, Column, DataFrame, DataType, Expr,
    IntoColumn, IntoLazy, IntoSeries, JoinArgs, JoinType, LazyFrame, NamedFrom, Series, SortMultipleOptions,
    all, col, cols, concat, df, len, lit, when,
};
