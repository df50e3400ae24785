//! Pictures drawn by hand: plotters' own API on a canvas of lowbit's.
//!
//! ```
//! # fn main() -> lowbit::Result<()> {
//! use lowbit::figure::picture;
//! use plotters::prelude::*;
//! let drawn = picture((640, 480), |root| {
//!     root.fill(&WHITE)?;
//!     let mut chart = ChartBuilder::on(&root)
//!         .caption("y = x²", ("sans-serif", 24))
//!         .margin(10)
//!         .x_label_area_size(30)
//!         .y_label_area_size(30)
//!         .build_cartesian_2d(-1.0..1.0, 0.0..1.0)?;
//!     chart.configure_mesh().draw()?;
//!     chart.draw_series(LineSeries::new((-50..=50).map(|x| f64::from(x) / 50.0).map(|x| (x, x * x)), &RED))?;
//!     Ok(())
//! })?;
//! assert!(drawn.svg().contains("y = x²"));
//! # Ok(())
//! # }
//! ```
//!
//! The closure runs once; its [`Canvas`] draws as SVG and as bitmap side by side, so that a cell shows either.

use super::canvas::{BITMAP_TEXT, FAMILY, SVG_TEXT, load_fonts};
use super::output::{OVERSAMPLING, PNG_SCALE, averaged, encode};
use crate::error::{Error, Result};
use crate::whole::write_bytes;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind, FontStyle,
};
use std::error::Error as StdError;
use std::path::Path;

/// Most pixels of a side: a bitmap takes 108 bytes a pixel while it is drawn.
const LARGEST: u32 = 4096;
/// Pixels of the bitmap for one of the canvas, along a side.
const FINE: u32 = PNG_SCALE * OVERSAMPLING;

/// A picture drawn by [`picture`]: the same as SVG and as PNG.
#[derive(Clone, Debug)]
pub struct Picture {
    svg: String,
    png: Vec<u8>,
    size: (u32, u32),
}

/// What [`picture`] hands to its closure: a plotters backend of the size that was asked for.
///
/// Text is measured, and set in the bitmap, in the font of lowbit's figures, since no font of the system is asked; the SVG
/// keeps the family's name, and its viewer sets it. Legends know the families `sans-serif`, `serif` and `monospace` alone.
pub struct Canvas<'a> {
    svg: SVGBackend<'a>,
    bitmap: BitMapBackend<'a>,
}

/// Draws with plotters' own API on a canvas of `(width, height)` pixels.
///
/// The background is transparent in SVG and black in PNG until the closure fills it, as in plotters.
///
/// # Errors
/// If a side is 0 or above 4,096; what the closure returns as an error; if the PNG cannot be encoded.
pub fn picture<F>((width, height): (u32, u32), draw: F) -> Result<Picture>
where
    F: FnOnce(DrawingArea<Canvas<'_>, Shift>) -> std::result::Result<(), Box<dyn StdError>>,
{
    if width.min(height) == 0 || width.max(height) > LARGEST {
        return Err(Error::input(format!("a picture of {width} × {height} pixels"))
            .hint(format!("sides of 1 to {LARGEST} pixels can be drawn")));
    }
    load_fonts();
    let (size, mut svg) = ((width * PNG_SCALE, height * PNG_SCALE), String::new());
    let fine = (width * FINE, height * FINE);
    let mut pixels = vec![0; fine.0 as usize * fine.1 as usize * 3];
    let canvas = Canvas {
        svg: SVGBackend::with_string(&mut svg, (width, height)),
        bitmap: BitMapBackend::with_buffer(&mut pixels, fine),
    };
    draw(canvas.into_drawing_area())
        .map_err(|error| Error::input(format!("the picture was not drawn: {error}")))?;
    Ok(Picture { svg, png: encode(&averaged(&pixels, size), size)?, size: (width, height) })
}

impl Picture {
    /// The picture as SVG text.
    pub fn svg(&self) -> &str {
        &self.svg
    }

    /// The picture as a PNG of two pixels for one of the canvas.
    pub fn png(&self) -> &[u8] {
        &self.png
    }

    /// Width and height of the canvas, in pixels.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// Writes the picture as its file name ends, `.svg` or `.png`; an old file is replaced as a whole.
    ///
    /// # Errors
    /// If the name ends otherwise; if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match path.extension().and_then(|e| e.to_str()) {
            Some("svg") => write_bytes(path, self.svg.as_bytes()),
            Some("png") => write_bytes(path, &self.png),
            _ => Err(Error::input("a picture is saved as .svg or .png").at(path.display())),
        }
    }
}

type Drawn = std::result::Result<(), DrawingErrorKind<std::io::Error>>;

/// Errors of the bitmap in the type of those of the SVG.
fn of_bitmap<E: StdError + Send + Sync>(result: std::result::Result<(), DrawingErrorKind<E>>) -> Drawn {
    result.map_err(|error| DrawingErrorKind::DrawingError(std::io::Error::other(error.to_string())))
}

/// A coordinate of the canvas in the bitmap. Far outside, where it would overflow, all is cut off alike.
fn fine((x, y): BackendCoord) -> BackendCoord {
    let fine = |at: i32| at.saturating_mul(FINE as i32);
    (fine(x), fine(y))
}

/// A style with lines as much wider as the bitmap is finer.
struct Fine(BackendColor, u32);

impl Fine {
    fn of(style: &impl BackendStyle) -> Self {
        Self(style.color(), style.stroke_width().saturating_mul(FINE))
    }
}

impl BackendStyle for Fine {
    fn color(&self) -> BackendColor {
        self.0
    }

    fn stroke_width(&self) -> u32 {
        self.1
    }
}

/// A text's style in the embedded font, `scale` times as large.
fn set(style: &impl BackendTextStyle, scale: f64) -> TextStyle<'static> {
    let slant = match style.style() {
        FontStyle::Bold => FontStyle::Bold,
        _ => FontStyle::Normal, // the embedded font has no italics
    };
    let font = FontDesc::new(FontFamily::Name(FAMILY), style.size() * scale, slant);
    let BackendColor { alpha, rgb: (r, g, b) } = style.color();
    font.transform(style.transform()).color(&RGBAColor(r, g, b, alpha)).pos(style.anchor())
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = std::io::Error;

    fn get_size(&self) -> (u32, u32) {
        self.svg.get_size()
    }

    fn ensure_prepared(&mut self) -> Drawn {
        self.svg.ensure_prepared()?;
        of_bitmap(self.bitmap.ensure_prepared())
    }

    fn present(&mut self) -> Drawn {
        self.svg.present()?;
        of_bitmap(self.bitmap.present())
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Drawn {
        self.svg.draw_pixel(point, color)?;
        let (from, side) = (fine(point), FINE as i32 - 1);
        of_bitmap(self.bitmap.draw_rect(from, (from.0 + side, from.1 + side), &color, true))
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn {
        self.svg.draw_line(from, to, style)?;
        of_bitmap(self.bitmap.draw_path([fine(from), fine(to)], &Fine::of(style)))
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn {
        self.svg.draw_rect(upper_left, bottom_right, style, fill)?;
        let ((left, top), (right, bottom)) = (fine(upper_left), fine(bottom_right));
        of_bitmap(if fill {
            self.bitmap.draw_rect((left, top), (right, bottom), &Fine::of(style), true)
        } else {
            // A bitmap's own outline of a rectangle is one pixel wide, whatever the style says.
            let outline = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)];
            self.bitmap.draw_path(outline, &Fine::of(style))
        })
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn {
        let path: Vec<_> = path.into_iter().collect();
        self.svg.draw_path(path.iter().copied(), style)?;
        of_bitmap(self.bitmap.draw_path(path.into_iter().map(fine), &Fine::of(style)))
    }

    fn draw_circle<S: BackendStyle>(
        &mut self,
        center: BackendCoord,
        radius: u32,
        style: &S,
        fill: bool,
    ) -> Drawn {
        self.svg.draw_circle(center, radius, style, fill)?;
        of_bitmap(self.bitmap.draw_circle(fine(center), radius.saturating_mul(FINE), &Fine::of(style), fill))
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        vert: I,
        style: &S,
    ) -> Drawn {
        let corners: Vec<_> = vert.into_iter().collect();
        self.svg.fill_polygon(corners.iter().copied(), style)?;
        of_bitmap(self.bitmap.fill_polygon(corners.into_iter().map(fine), &Fine::of(style)))
    }

    fn draw_text<T: BackendTextStyle>(&mut self, text: &str, style: &T, pos: BackendCoord) -> Drawn {
        self.svg.draw_text(text, style, pos)?;
        let scale = f64::from(FINE) * BITMAP_TEXT.size_per_em / SVG_TEXT.size_per_em; // the same em in both
        of_bitmap(self.bitmap.draw_text(text, &set(style, scale), fine(pos)))
    }

    fn estimate_text_size<T: BackendTextStyle>(
        &self,
        text: &str,
        style: &T,
    ) -> std::result::Result<(u32, u32), DrawingErrorKind<Self::ErrorType>> {
        self.svg.estimate_text_size(text, &set(style, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::picture;
    use plotters::prelude::*;

    #[test]
    fn one_closure_draws_both() {
        let drawn = picture((320, 200), |root| {
            root.fill(&WHITE)?;
            let root = root.titled("Named", ("monospace", 20))?;
            let mut chart = ChartBuilder::on(&root)
                .margin(8)
                .x_label_area_size(24)
                .y_label_area_size(32)
                .build_cartesian_2d(0.0..10.0, 0.0..100.0)?;
            chart.configure_mesh().draw()?;
            let line =
                LineSeries::new((0..=10).map(|x| (f64::from(x), f64::from(x * x))), BLUE.stroke_width(2));
            chart
                .draw_series(line)?
                .label("squares")
                .legend(|(x, y)| PathElement::new([(x, y), (x + 9, y)], BLUE));
            chart.draw_series([Circle::new((5.0, 50.0), 6, RED.filled())])?;
            chart.configure_series_labels().border_style(BLACK).draw()?;
            Ok(())
        })
        .unwrap();
        assert_eq!(drawn.size(), (320, 200));
        for part in ["Named", "monospace", "squares", "<polyline", "<circle", "</svg>"] {
            assert!(drawn.svg().contains(part), "{part}");
        }
        // Width and height of a PNG follow its signature and the name of its first chunk.
        let side = |at: usize| u32::from_be_bytes(drawn.png()[at..at + 4].try_into().unwrap());
        assert_eq!((side(16), side(20)), (640, 400));
        assert!(drawn.png().len() > 2000);
    }

    #[test]
    fn what_cannot_be_drawn_is_told() {
        for size in [(0, 10), (10, 5000)] {
            let error = picture(size, |_| Ok(())).unwrap_err().to_string();
            assert!(error.contains(&size.1.to_string()) && error.contains("1 to 4096"), "{error}");
        }
        let error = picture((10, 10), |_| Err("no data".into())).unwrap_err().to_string();
        assert!(error.contains("the picture was not drawn: no data"), "{error}");
        let drawn = picture((10, 10), |root| Ok(root.fill(&WHITE)?)).unwrap();
        assert!(drawn.save("picture.gif").unwrap_err().to_string().contains(".svg or .png"));
    }
}
