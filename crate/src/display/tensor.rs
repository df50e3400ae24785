//! Tensors: shape, dtype, statistics, and the values where they are few.

use super::table::float;
use super::{Draw, Drawing, html};
use candle_core::{DType, Device, Result, Tensor};

/// Values of a row, and rows, that are written out.
const ACROSS: usize = 8;
const DOWN: usize = 8;

impl Draw for Tensor {
    fn draw(&self) -> Drawing {
        match describe(self) {
            Ok(drawn) => drawn,
            Err(error) => super::card::failed(&error),
        }
    }
}

fn describe(tensor: &Tensor) -> Result<Drawing> {
    let dims = tensor.dims();
    let shape: Vec<String> = dims.iter().map(ToString::to_string).collect();
    let shape = format!("[{}]", shape.join(", "));
    let device = match tensor.device() {
        Device::Cpu => "CPU",
        Device::Cuda(_) => "CUDA",
        Device::Metal(_) => "Metal",
    };
    let about = format!("{} on {device}", tensor.dtype().as_str());
    let values: Vec<f64> = tensor.to_device(&Device::Cpu)?.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
    let statistics = statistics(&values);
    let across = dims.last().copied().unwrap_or(1).max(1);
    let (columns, rows) = (across.min(ACROSS), (values.len() / across).min(DOWN));
    let cells: Vec<Vec<String>> = (0..rows)
        .map(|row| values[row * across..][..columns].iter().map(|value| float(*value)).collect())
        .collect();
    let headings: Vec<_> = (0..columns)
        .map(|i| html::Column { name: i.to_string(), below: String::new(), numeric: true })
        .collect();
    let part = match rows * columns < values.len() {
        true => format!("first {rows} × {columns} of {} values", values.len()),
        false => String::new(),
    };
    let text_rows: Vec<String> = cells.iter().map(|row| row.join("  ")).collect();
    let text = [format!("tensor {shape} {about}"), statistics.clone(), text_rows.join("\n"), part.clone()];
    let lines = [("shape".to_string(), shape), ("values".to_string(), statistics)];
    let html = html::card("tensor", &about, &lines)
        + &html::table(&headings, &cells, None)
        + &if part.is_empty() { String::new() } else { html::small(&part) };
    let text: Vec<String> = text.into_iter().filter(|line| !line.is_empty()).collect();
    Ok(Drawing { text: text.join("\n"), html: Some(html), ..Drawing::default() })
}

/// Extremes, mean and deviation; what is not finite is counted and left out of them.
fn statistics(values: &[f64]) -> String {
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let odd = match values.len() - finite.len() {
        0 => String::new(),
        n => format!(", {n} not finite"),
    };
    if finite.is_empty() {
        return format!("{} values{odd}", values.len());
    }
    let n = finite.len() as f64;
    let mean = finite.iter().sum::<f64>() / n;
    let deviation = (finite.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
    let low = finite.iter().copied().fold(f64::INFINITY, f64::min);
    let high = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{} to {}, mean {}, σ {}{odd}", float(low), float(high), float(mean), float(deviation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_shows_its_shape_statistics_and_corner() {
        let drawn = Tensor::arange(0f32, 200.0, &Device::Cpu).unwrap().reshape((2, 10, 10)).unwrap().draw();
        assert!(drawn.text.starts_with("tensor [2, 10, 10] f32 on CPU\n0 to 199, mean 99.5, σ 57.7343"));
        assert!(
            drawn.text.ends_with("70  71  72  73  74  75  76  77\nfirst 8 × 8 of 200 values"),
            "{}",
            drawn.text
        );
        let odd = Tensor::new(&[1f32, f32::NAN], &Device::Cpu).unwrap().draw();
        assert!(odd.text.contains("1 to 1, mean 1, σ 0, 1 not finite"));
        assert!(Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap().draw().text.contains("[0, 3]"));
    }
}
