//! Controls and bars that can be stopped, by the protocol of ipywidgets, which JupyterLab and VS Code draw.
//!
//! Each control is a model on both sides, tied by a comm: a move in the browser comes as a message, goes to the process
//! of the cells, and the answer changes the display below the controls. The move counts as worked on until then, so that
//! a front end does not send more of them than can be answered.

use crate::answer::media;
use crate::event::{Answer, Controls, Part, Progress};
use crate::front::{Shared, lock};
use crate::wire::Wire;
use jupyter_protocol::messaging::*;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

/// The target of every widget's comm.
const WIDGET: &str = "jupyter.widget";
/// The target of the comm that asks for all of them at once.
const CONTROL: &str = "jupyter.widget.control";
/// The protocol's version.
const VERSION: &str = "2.1.0";
/// A bar that is shorter than this needs no button.
const PATIENCE_S: f64 = 1.0;
/// The MIME type that shows a widget.
const VIEW: &str = "application/vnd.jupyter.widget-view+json";

/// What a model is for.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    /// It only looks.
    Look,
    /// The part of a group of controls.
    Part(u64, usize),
    /// It stops the cell.
    Stop,
}

/// One model: what the browser has, too.
struct Model {
    state: Map<String, Value>,
    role: Role,
}

/// Controls that are bound to one closure, as they are shown.
struct Group {
    /// The display of what the closure makes.
    display: String,
    /// Their models.
    models: Vec<String>,
    /// The cell that shows them, its run, and the client that ran it.
    cell: Option<String>,
    request: String,
    client: String,
}

/// All widgets of a kernel.
pub struct Widgets {
    wire: Arc<Mutex<Wire>>,
    /// Whether the front end draws widgets: it has asked for those that there are.
    drawn: bool,
    models: BTreeMap<String, Model>,
    groups: BTreeMap<u64, Group>,
    /// Bars that have a button: what shows them.
    bars: HashMap<u64, [String; 3]>,
    /// Moves that are not answered.
    moves: BTreeMap<u64, (u64, JupyterMessage)>,
    serial: u64,
}

impl Widgets {
    /// None yet; moves go through `wire`.
    pub fn new(wire: Arc<Mutex<Wire>>) -> Self {
        Self {
            wire,
            drawn: false,
            models: BTreeMap::new(),
            groups: BTreeMap::new(),
            bars: HashMap::new(),
            moves: BTreeMap::new(),
            serial: 0,
        }
    }

    /// Whether a move is not answered.
    pub fn waits(&self) -> bool {
        !self.moves.is_empty()
    }

    /// Answers a request to list the comms.
    pub fn list(&mut self, asked: &CommInfoRequest) -> CommInfoReply {
        let target = asked.target_name.as_deref();
        self.drawn |= target == Some(WIDGET);
        let listed = target.is_none_or(|target| target == WIDGET);
        let models = self.models.keys().filter(|_| listed);
        let about = |id: &String| (CommId(id.clone()), CommInfo { target_name: WIDGET.into() });
        CommInfoReply { comms: models.map(about).collect(), ..CommInfoReply::default() }
    }

    /// Shows controls, and below them what their closure made of their first values.
    pub fn open(&mut self, shared: &Shared, controls: &Controls) {
        let parent = shared.parent().clone();
        let client = parent.as_ref().map(|parent| parent.header.session.clone()).unwrap_or_default();
        let cell =
            parent.as_ref().and_then(|parent| Some(parent.metadata.get("cellId")?.as_str()?.to_string()));
        let request = parent.as_ref().map(|parent| parent.header.msg_id.clone()).unwrap_or_default();
        let again = |group: &Group| cell.is_some() && group.cell == cell && group.request != request;
        let old: Vec<u64> = self.groups.iter().filter(|(_, group)| again(group)).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| self.close(shared, id));

        let display = format!("lowbit-controls-{}", uuid::Uuid::new_v4());
        let text: Vec<&str> = controls.parts.iter().map(|part| part.text.as_str()).collect();
        let mut view = vec![("text/plain".to_string(), text.join("\n"))];
        let mut models = vec![];
        if self.drawn {
            for (index, part) in controls.parts.iter().enumerate() {
                models.push(self.create(shared, part.model(), Role::Part(controls.id, index)));
            }
            let children: Vec<String> = models.iter().map(|id| format!("IPY_MODEL_{id}")).collect();
            models.push(self.create(
                shared,
                model("controls", "VBox", json!({"children": children})),
                Role::Look,
            ));
            view.extend(models.last().map(|id| view_of(id)));
        }
        shared.publish(DisplayData::new(media(&view.into_iter().collect())));
        let transient = Some(Transient { display_id: Some(display.clone()) });
        shared.publish(DisplayData { transient, ..DisplayData::new(media(&controls.shown)) });
        self.groups.insert(controls.id, Group { display, models, cell, request, client });
    }

    /// Shows what a closure made of its new values.
    pub fn answered(&mut self, shared: &Shared, answer: &Answer) {
        let shown = answer.shown.clone().unwrap_or_else(|| {
            let text = "The process that these controls belong to has ended: run their cell again.";
            BTreeMap::from([("text/plain".to_string(), text.to_string())])
        });
        let later = self.moves.split_off(&(answer.serial + 1));
        let moves = std::mem::replace(&mut self.moves, later);
        for (serial, (id, request)) in moves {
            if id != answer.id {
                self.moves.insert(serial, (id, request));
                continue;
            }
            if let Some(group) = self.groups.get(&id).filter(|_| serial == answer.serial) {
                let update = UpdateDisplayData::new(media(&shown), &group.display);
                shared.send(JupyterMessage::new(update, Some(&request)));
            }
            shared.status(ExecutionState::Idle, &request);
        }
    }

    /// What a bar is shown by: by itself (None), by a widget with a button, which is to be displayed now (its view) or
    /// has been before.
    pub fn bar(&mut self, shared: &Shared, bar: &Progress) -> Option<Option<(String, String)>> {
        if let Some([html, _, _]) = self.bars.get(&bar.id) {
            if !bar.finished {
                let html = html.clone();
                self.change(shared, &html, "value", json!(bar.html()));
                return Some(None);
            }
            for model in self.bars.remove(&bar.id).into_iter().flatten() {
                self.remove(shared, &model);
            }
            return None;
        }
        if !self.drawn || bar.finished || bar.elapsed_s < PATIENCE_S {
            return None;
        }
        let html = self.create(shared, model("controls", "HTML", json!({"value": bar.html()})), Role::Look);
        let about =
            json!({"description": "stop", "icon": "stop", "tooltip": "Stops the cell; its variables stay."});
        let stop = self.create(shared, model("controls", "Button", about), Role::Stop);
        let children = json!({"children": [format!("IPY_MODEL_{html}"), format!("IPY_MODEL_{stop}")]});
        let row = self.create(shared, model("controls", "HBox", children), Role::Look);
        let view = view_of(&row);
        self.bars.insert(bar.id, [html, stop, row]);
        Some(Some(view))
    }

    /// Does what a message of a comm asks, and says what is left to do. A front end that draws widgets begins by the comm
    /// for all of them, or by the list of them.
    pub fn hear(&mut self, shared: &Shared, request: &JupyterMessage) -> Heard {
        match &request.content {
            JupyterMessageContent::CommOpen(open) if open.target_name == CONTROL => self.drawn = true,
            JupyterMessageContent::CommOpen(open) => {
                shared.send(JupyterMessage::new(closing(&open.comm_id.0), Some(request))); // nobody here knows it
            }
            JupyterMessageContent::CommMsg(message) => {
                let method = message.data.get("method").and_then(Value::as_str).unwrap_or_default();
                return self.obey(shared, request, &message.comm_id.0, method, &message.data);
            }
            JupyterMessageContent::CommClose(closed) => drop(self.models.remove(&closed.comm_id.0)),
            _ => {}
        }
        Heard::Done
    }

    fn obey(
        &mut self,
        shared: &Shared,
        request: &JupyterMessage,
        id: &str,
        method: &str,
        data: &Map<String, Value>,
    ) -> Heard {
        if method == "request_states" {
            let about = |model: &Model| {
                let of = |key: &str| model.state.get(key).cloned().unwrap_or_default();
                json!({
                    "model_name": of("_model_name"), "model_module": of("_model_module"),
                    "model_module_version": of("_model_module_version"), "state": model.state,
                })
            };
            let states: Map<String, Value> =
                self.models.iter().map(|(id, model)| (id.clone(), about(model))).collect();
            let reply = json!({"method": "update_states", "states": states, "buffer_paths": []});
            shared.send(JupyterMessage::new(message(id, reply), Some(request)));
            return Heard::Done;
        }
        let Some(model) = self.models.get_mut(id) else { return Heard::Done };
        let mut moved = None;
        match method {
            "request_state" => {
                let reply = json!({"method": "update", "state": model.state, "buffer_paths": []});
                shared.send(JupyterMessage::new(message(id, reply), Some(request)));
            }
            "update" => {
                let state = data.get("state").and_then(Value::as_object).cloned().unwrap_or_default();
                moved = ["value", "index"].iter().find_map(|key| number(state.get(*key)?));
                model.state.extend(state);
            }
            "custom" if data.get("content").is_some_and(|content| content["event"] == "click") => {
                if model.role == Role::Stop {
                    return Heard::Stop;
                }
                let presses = number(model.state.get("presses").unwrap_or(&Value::Null)).unwrap_or(0.0) + 1.0;
                model.state.insert("presses".into(), json!(presses));
                moved = Some(presses);
            }
            _ => {}
        }
        let (Some(value), Role::Part(group, part)) = (moved, model.role) else { return Heard::Done };
        self.serial += 1;
        lock(&self.wire).send(&format!("move {group} {part} {} {value}", self.serial));
        self.moves.insert(self.serial, (group, request.clone()));
        self.tell_stranger(shared, request, group, id);
        Heard::Waits
    }

    /// A page that was loaded again has no tie to the display of controls that were shown before.
    fn tell_stranger(&mut self, shared: &Shared, request: &JupyterMessage, group: u64, id: &str) {
        let stranger = self.groups.get(&group).is_some_and(|group| group.client != request.header.session);
        let label = self.models.get(id).and_then(|model| model.state.get("description")?.as_str());
        const NOTE: &str = " (to see it here, run the cell)";
        if let Some(label) = label.filter(|label| stranger && !label.ends_with(NOTE)) {
            let label = format!("{label}{NOTE}");
            self.change(shared, id, "description", json!(label));
        }
    }

    /// The process that ran the cells has ended: no control moves anything any more.
    pub fn end(&mut self, shared: &Shared) {
        for (_, request) in std::mem::take(&mut self.moves).into_values() {
            shared.status(ExecutionState::Idle, &request);
        }
        let groups: Vec<u64> = self.groups.keys().copied().collect();
        groups.into_iter().for_each(|id| self.close(shared, id));
        for model in std::mem::take(&mut self.bars).into_values().flatten() {
            self.remove(shared, &model);
        }
    }

    fn close(&mut self, shared: &Shared, id: u64) {
        lock(&self.wire).send(&format!("close {id}"));
        for model in self.groups.remove(&id).into_iter().flat_map(|group| group.models) {
            self.remove(shared, &model);
        }
    }

    /// Makes a model here and in the browser.
    fn create(&mut self, shared: &Shared, state: Value, role: Role) -> String {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let state = state.as_object().cloned().unwrap_or_default();
        let data = json!({"state": state, "buffer_paths": []});
        let open = CommOpen {
            comm_id: CommId(id.clone()),
            target_name: WIDGET.into(),
            data: data.as_object().cloned().unwrap_or_default(),
            target_module: None,
        };
        let message = JupyterMessage::new(open, shared.parent().as_ref());
        shared.send(message.with_metadata(json!({"version": VERSION})));
        self.models.insert(id.clone(), Model { state, role });
        id
    }

    fn change(&mut self, shared: &Shared, id: &str, key: &str, value: Value) {
        let update = json!({"method": "update", "state": {key: value}, "buffer_paths": []});
        shared.publish(message(id, update));
        if let Some(model) = self.models.get_mut(id) {
            model.state.insert(key.into(), value);
        }
    }

    fn remove(&mut self, shared: &Shared, id: &str) {
        self.models.remove(id);
        shared.publish(closing(id));
    }
}

/// What is left to do about a message of a comm.
pub enum Heard {
    /// Nothing.
    Done,
    /// It counts as worked on until its closure has answered.
    Waits,
    /// The cell is to be stopped.
    Stop,
}

/// A model's state: its kind, and what else is set.
fn model(module: &str, name: &str, more: Value) -> Value {
    let module = format!("@jupyter-widgets/{module}");
    let mut state = json!({
        "_model_module": module, "_model_module_version": "2.0.0", "_model_name": format!("{name}Model"),
        "_view_module": module, "_view_module_version": "2.0.0", "_view_name": format!("{name}View"),
    });
    if let (Some(state), Value::Object(more)) = (state.as_object_mut(), more) {
        state.extend(more);
    }
    state
}

fn view_of(id: &str) -> (String, String) {
    (VIEW.into(), json!({"model_id": id, "version_major": 2, "version_minor": 0}).to_string())
}

fn message(id: &str, data: Value) -> CommMsg {
    CommMsg { comm_id: CommId(id.into()), data: data.as_object().cloned().unwrap_or_default() }
}

fn closing(id: &str) -> CommClose {
    CommClose { comm_id: CommId(id.into()), data: Map::new() }
}

/// A number, the index of a choice, or 1 and 0 for on and off.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| Some(f64::from(u8::from(value.as_bool()?))))
}

impl Part {
    /// The state of its model.
    fn model(&self) -> Value {
        let Self { label, value, min, max, step, options, .. } = self;
        match (self.kind.as_str(), self.whole) {
            ("slider", true) => model(
                "controls",
                "IntSlider",
                json!({
                    "description": label, "value": *value as i64, "min": *min as i64, "max": *max as i64,
                    "step": *step as i64, "continuous_update": true, "readout_format": "d",
                }),
            ),
            ("slider", false) => model(
                "controls",
                "FloatSlider",
                json!({
                    "description": label, "value": value, "min": min, "max": max, "step": step,
                    "continuous_update": true, "readout_format": ".4~g",
                }),
            ),
            ("choice", _) => model(
                "controls",
                "Dropdown",
                json!({"description": label, "_options_labels": options, "index": *value as i64}),
            ),
            ("toggle", _) => model(
                "controls",
                "Checkbox",
                json!({"description": label, "value": *value > 0.0, "indent": true}),
            ),
            _ => model("controls", "Button", json!({"description": label})),
        }
    }
}
