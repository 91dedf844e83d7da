//! What the page draws, as SVG.
//!
//! Numbers are bounded first, so that no bundle can make a plot too large or its coordinates anything but numbers.

use maud::{Markup, html};
use std::collections::BTreeMap;

/// Width of every plot, in its own units, which are about a pixel wide on a phone.
const WIDTH: f64 = 380.0;

/// Bars, or series, that are drawn at most.
const MOST: usize = 12;

/// Points of a plot that are drawn at most.
const MOST_POINTS: usize = 2000;

/// Larger numbers are drawn as if they were this.
const LARGEST: f64 = 1e12;

fn bounded(value: f64) -> f64 {
    match value.is_nan() {
        true => 0.0,
        false => value.clamp(-LARGEST, LARGEST),
    }
}

/// A bar with what it is of and its value in words.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) told: String,
}

/// Bars from the left, each below its name; values below zero have none.
pub(super) fn bars(label: &str, bars: &[Bar]) -> Markup {
    let bars = &bars[..bars.len().min(MOST)];
    let largest = bars
        .iter()
        .map(|bar| bounded(bar.value))
        .fold(0.0, f64::max);
    let length = |value: f64| match largest > 0.0 {
        true => (bounded(value) / largest * WIDTH).max(0.0),
        false => 0.0,
    };
    const ROW: f64 = 44.0;
    let height = ROW * bars.len() as f64;
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(label) {
            @for (index, bar) in bars.iter().enumerate() {
                @let top = index as f64 * ROW;
                text x="0" y=(top + 15.0) { (bar.name) }
                text x=(WIDTH) y=(top + 15.0) text-anchor="end" class="value" { (bar.told) }
                rect class="track" x="0" y=(top + 22.0) width=(WIDTH) height="10" rx="3" {}
                rect class="bar" x="0" y=(top + 22.0) width=(number(length(bar.value))) height="10" rx="3" {}
            }
        }
    }
}

/// A point of a plot, and what is said when it is pointed at.
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) told: String,
}

/// Points of one kind.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<Point>,
    /// Neighbours are joined.
    pub(super) is_line: bool,
}

impl Series {
    /// What gives it its colour.
    fn class(&self, index: usize) -> String {
        match self.is_line {
            true => "line".to_owned(),
            false => format!("series-{index}"),
        }
    }
}

/// What stands at the axes.
pub(super) struct Axes<'a> {
    pub(super) label: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    /// Whether the x-axis begins at zero, as the y-axis always does.
    pub(super) x_from_zero: bool,
    /// Whether only whole numbers stand at the x-axis.
    pub(super) x_is_whole: bool,
}

/// Points over two axes, with a legend where there are several series.
pub(super) fn points(axes: &Axes<'_>, series: &[Series]) -> Markup {
    const HEIGHT: f64 = 240.0;
    const LEFT: f64 = 50.0;
    const RIGHT: f64 = 14.0;
    const TOP: f64 = 26.0;
    const BOTTOM: f64 = 46.0;
    let series = &series[..series.len().min(MOST)];
    let all = || series.iter().flat_map(|series| &series.points);
    let xs = Scale::over(
        all().map(|point| point.x),
        axes.x_from_zero,
        [LEFT, WIDTH - RIGHT],
    );
    let ys = Scale::over(all().map(|point| point.y), true, [HEIGHT - BOTTOM, TOP]);
    let is_wanted = |tick: &f64| !axes.x_is_whole || tick.fract() == 0.0;
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(axes.label) {
            text x="0" y="14" class="value" { (axes.y) }
            @for tick in ys.ticks() {
                @let y = number(ys.place(tick));
                line class="grid" x1=(LEFT) x2=(WIDTH - RIGHT) y1=(y) y2=(y) {}
                text class="value" x=(LEFT - 8.0) y=(y) dy="0.35em" text-anchor="end" { (ys.told(tick)) }
            }
            @for tick in xs.ticks().into_iter().filter(is_wanted) {
                text class="value" x=(number(xs.place(tick))) y=(HEIGHT - BOTTOM + 19.0) text-anchor="middle" { (xs.told(tick)) }
            }
            text class="value" x=(WIDTH - RIGHT) y=(HEIGHT - 6.0) text-anchor="end" { (axes.x) }
            @for (index, series) in series.iter().enumerate() {
                @let shown = &series.points[..series.points.len().min(MOST_POINTS)];
                g class=(series.class(index)) {
                    @if series.is_line {
                        polyline points=(path(shown, &xs, &ys)) {}
                    } @else {
                        @for point in shown {
                            circle cx=(number(xs.place(point.x))) cy=(number(ys.place(point.y))) r="4" { title { (point.told) } }
                        }
                    }
                }
            }
        }
        @if series.len() > 1 {
            p class="legend" {
                @for (index, series) in series.iter().enumerate() {
                    span class=(series.class(index)) { i {} (series.name) }
                    " "
                }
            }
        }
    }
}

fn path(points: &[Point], xs: &Scale, ys: &Scale) -> String {
    let places = points.iter().map(|point| {
        format!(
            "{},{}",
            number(xs.place(point.x)),
            number(ys.place(point.y))
        )
    });
    places.collect::<Vec<_>>().join(" ")
}

/// A coordinate: a tenth of a unit is less than is seen.
fn number(value: f64) -> String {
    format!("{value:.1}")
}

/// Values along one side of a plot.
struct Scale {
    from: f64,
    step: f64,
    steps: usize,
    place: [f64; 2],
}

impl Scale {
    /// A scale with round numbers that holds all values.
    fn over(values: impl Iterator<Item = f64>, from_zero: bool, place: [f64; 2]) -> Scale {
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.map(bounded) {
            least = least.min(value);
            most = most.max(value);
        }
        if least > most {
            (least, most) = (0.0, 1.0);
        }
        if from_zero {
            (least, most) = (least.min(0.0), most.max(0.0));
        }
        if most - least < 1e-9 {
            let around = (most.abs() * 0.05).max(1e-9);
            (least, most) = match from_zero {
                true => (least, least + 1.0),
                false => (least - around, most + around),
            };
        }
        let rough = (most - least) / 4.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let from = (least / step).floor() * step;
        let steps = ((most - from) / step - 1e-9).ceil().clamp(1.0, 8.0) as usize;
        Scale {
            from,
            step,
            steps,
            place,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let [first, last] = self.place;
        let share = (bounded(value) - self.from) / (self.step * self.steps as f64);
        first + share.clamp(0.0, 1.0) * (last - first)
    }

    fn ticks(&self) -> Vec<f64> {
        let tick = |index: usize| self.from + index as f64 * self.step;
        (0..=self.steps).map(tick).collect()
    }

    fn told(&self, tick: f64) -> String {
        let decimals = (-self.step.log10().floor()).clamp(0.0, 9.0) as usize;
        format!("{tick:.decimals$}")
    }
}

/// Points by the name of their series, in the order in which the names come; those that are too many are left out.
pub(super) fn by_name(points: impl Iterator<Item = (String, Point)>) -> Vec<Series> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut series: Vec<Series> = vec![];
    for (name, point) in points {
        let place = *places.entry(name.clone()).or_insert(series.len());
        if place == series.len() {
            series.push(Series {
                name,
                points: vec![],
                is_line: false,
            });
        }
        series[place].points.push(point);
    }
    series.truncate(MOST - 1);
    series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_holds_its_values_between_round_numbers() {
        let scale = Scale::over([3.0, 97.0].into_iter(), true, [0.0, 100.0]);
        assert_eq!(scale.ticks(), [0.0, 50.0, 100.0]);
        assert_eq!((scale.place(0.0), scale.place(50.0)), (0.0, 50.0));
        let scale = Scale::over([0.0101, 0.0139].into_iter(), false, [0.0, 100.0]);
        assert_eq!(scale.told(scale.ticks()[0]), "0.010");
        assert!(scale.place(0.0139) < 100.0);
    }

    #[test]
    fn numbers_of_any_size_give_places_inside_the_plot() {
        for values in [
            vec![],
            vec![0.0],
            vec![f64::MAX, -f64::MAX],
            vec![f64::NAN, 1e-300],
            vec![5e-324, 1e-320],
            vec![1e12, 1e12],
        ] {
            for from_zero in [true, false] {
                let scale = Scale::over(values.iter().copied(), from_zero, [10.0, 90.0]);
                assert!(scale.ticks().len() <= 9, "{values:?}");
                for value in &values {
                    let place = scale.place(*value);
                    assert!((10.0..=90.0).contains(&place), "{values:?}: {place}");
                }
            }
        }
    }
}
