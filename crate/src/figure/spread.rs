//! Several values at each place of several lines: their mean, and a band from the least to the largest.

use super::Point;

/// Lines in the order in which their names come.
#[derive(Default)]
pub(super) struct Spread(Vec<Line>);

struct Line {
    name: String,
    places: Vec<Place>,
}

struct Place {
    x: f64,
    values: Vec<f64>,
}

impl Spread {
    /// Adds a value at a place of the line of this name.
    pub fn add(&mut self, name: &str, x: f64, value: f64) {
        let line = self.0.iter().position(|line| line.name == name).unwrap_or_else(|| {
            self.0.push(Line { name: name.to_string(), places: vec![] });
            self.0.len() - 1
        });
        let places = &mut self.0[line].places;
        match places.iter_mut().find(|place| place.x == x) {
            Some(place) => place.values.push(value),
            None => places.push(Place { x, values: vec![value] }),
        }
    }

    /// Values at the place that has most of them.
    pub fn most(&self) -> usize {
        let places = self.0.iter().flat_map(|line| &line.places);
        places.map(|place| place.values.len()).max().unwrap_or(0)
    }

    /// Each line by its name: means, with the ends of their values where there are several.
    pub fn lines(&self) -> impl Iterator<Item = (&str, Vec<Point>)> {
        let point = |Place { x, values }: &Place| {
            let ends = [f64::min, f64::max].map(|end| values.iter().copied().reduce(end).unwrap_or(f64::NAN));
            let y = values.iter().sum::<f64>() / values.len() as f64;
            Point { x: *x, y, interval: (values.len() > 1).then_some((ends[0], ends[1])) }
        };
        self.0.iter().map(move |line| (line.name.as_str(), line.places.iter().map(point).collect()))
    }
}

#[test]
fn values_are_gathered_by_line_and_place() {
    let mut spread = Spread::default();
    for (name, x, value) in [("b", 1.0, 2.0), ("a", 1.0, 5.0), ("b", 2.0, 7.0), ("b", 1.0, 4.0)] {
        spread.add(name, x, value);
    }
    let lines: Vec<_> = spread.lines().collect();
    let mean = Point { x: 1.0, y: 3.0, interval: Some((2.0, 4.0)) };
    assert_eq!(lines[0], ("b", vec![mean, Point::new(2.0, 7.0)]));
    assert_eq!((lines[1].0, spread.most()), ("a", 2));
}
