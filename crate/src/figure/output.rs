//! Figures as SVG, PNG and files; as Vega-Lite they are in `vega`.

use super::canvas::{BITMAP_TEXT, Canvas, SVG_TEXT, load_fonts};
use super::chart::Chart;
use super::{Figure, Kind, bars, heat, lines};
use crate::error::{Error, Result};
use crate::whole::write_bytes;
use plotters::prelude::*;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// SVG coordinates are whole numbers: drawn this much larger and scaled down by the view box.
const SVG_SCALE: u32 = 4;
/// A bitmap is drawn this much larger and averaged: smooth edges, glyphs at fractions of a pixel.
pub(super) const OVERSAMPLING: u32 = 3;
/// Pixels a point of a saved PNG: 1,600 wide.
pub(super) const PNG_SCALE: u32 = 2;

impl Figure {
    /// The figure as SVG text.
    ///
    /// # Errors
    /// If a column does not exist, there is nothing to draw, or a logarithmic axis would show 0.
    pub fn svg(&self) -> Result<String> {
        let (chart, (width, height)) = self.prepare()?;
        let mut svg = String::new();
        let size = (width * SVG_SCALE, height * SVG_SCALE);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        self.draw(&chart, Canvas::new(area, f64::from(SVG_SCALE), SVG_TEXT)?)?;
        let drawn = format!("width=\"{}\" height=\"{}\" viewBox", size.0, size.1);
        Ok(svg.replacen(&drawn, &format!("width=\"{width}\" height=\"{height}\" viewBox"), 1))
    }

    /// The figure as a PNG of `scale` pixels a point: 2 gives 1,600 pixels of width.
    ///
    /// # Errors
    /// As [`svg`](Self::svg); and if the temporary folder cannot be written, since the encoder writes files.
    pub fn png(&self, scale: u32) -> Result<Vec<u8>> {
        let (chart, (width, height)) = self.prepare()?;
        let size = (width * scale.max(1), height * scale.max(1));
        let fine = (size.0 * OVERSAMPLING, size.1 * OVERSAMPLING);
        let mut pixels = vec![0; fine.0 as usize * fine.1 as usize * 3];
        let area = BitMapBackend::with_buffer(&mut pixels, fine).into_drawing_area();
        self.draw(&chart, Canvas::new(area, f64::from(scale.max(1) * OVERSAMPLING), BITMAP_TEXT)?)?;
        encode(&averaged(&pixels, size), size)
    }

    /// Writes the figure as its file name ends, `.svg`, `.png` or `.json` ([Vega-Lite](Self::vega)); an old file is
    /// replaced as a whole.
    ///
    /// # Errors
    /// As [`svg`](Self::svg); if the name ends otherwise; if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let bytes = match path.extension().and_then(|e| e.to_str()) {
            Some("svg") => self.svg()?.into_bytes(),
            Some("png") => self.png(PNG_SCALE)?,
            Some("json") => self.vega()?.to_string().into_bytes(),
            _ => return Err(Error::input("a figure is saved as .svg, .png or .json").at(path.display())),
        };
        write_bytes(path, &bytes)
    }

    pub(super) fn prepare(&self) -> Result<(Chart, (u32, u32))> {
        load_fonts();
        let chart = Chart::of(self)?;
        let size = match self.kind {
            Kind::Line => lines::SIZE,
            Kind::Bar => bars::size(self, &chart),
            Kind::Heat => heat::size(self, &chart),
        };
        Ok((chart, size))
    }

    fn draw<DB: DrawingBackend>(&self, chart: &Chart, canvas: Canvas<DB>) -> Result<()> {
        match self.kind {
            Kind::Line => lines::draw(self, chart, &canvas)?,
            Kind::Bar => bars::draw(self, chart, &canvas)?,
            Kind::Heat => heat::draw(self, chart, &canvas)?,
        }
        canvas.finish()
    }
}

/// Mean of each block of pixels.
pub(super) fn averaged(pixels: &[u8], (width, height): (u32, u32)) -> Vec<u8> {
    let n = OVERSAMPLING as usize;
    let (width, height) = (width as usize, height as usize);
    let mut sums = vec![0_u32; width * 3];
    let mut small = Vec::with_capacity(width * height * 3);
    for rows in pixels.chunks_exact(width * 3 * n * n) {
        sums.fill(0);
        for row in rows.chunks_exact(width * 3 * n) {
            for (sum, block) in sums.chunks_exact_mut(3).zip(row.chunks_exact(3 * n)) {
                for (i, byte) in block.iter().enumerate() {
                    sum[i % 3] += u32::from(*byte);
                }
            }
        }
        small.extend(sums.iter().map(|sum| ((sum + (n * n) as u32 / 2) / (n * n) as u32) as u8));
    }
    small
}

/// RGB pixels as a PNG file's bytes. The library's encoder writes files only.
pub(super) fn encode(pixels: &[u8], size: (u32, u32)) -> Result<Vec<u8>> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("lowbit-{}-{count}.png", std::process::id()));
    let mut backend = BitMapBackend::new(&path, size);
    let written = backend.blit_bitmap((0, 0), size, pixels).and_then(|()| backend.present());
    drop(backend);
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, &e));
    // A leftover in the temporary folder harms nobody.
    let _ = std::fs::remove_file(&path);
    written
        .map_err(|e| Error::unavailable(format!("the PNG could not be written: {e}")).at(path.display()))?;
    bytes
}
