"""Style and scripts of the page."""

CSS = """
:root { --ndc-blue: #0072b2; --ndc-vermilion: #d55e00; --ndc-green: #009e73; --ndc-orange: #e69f00;
  --ndc-purple: #cc79a7; --ndc-text: #222; --ndc-grid: #ccc; }
.dark { --ndc-blue: #56b4e9; --ndc-vermilion: #f0803c; --ndc-text: #eee; --ndc-grid: #444; }

.ndc { color: var(--ndc-text); max-width: 640px; }
.ndc svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.ndc svg text { fill: var(--ndc-text); }
.ndc svg .grid { stroke: var(--ndc-grid); }
.ndc img { image-rendering: pixelated; border-radius: 4px; }
.ndc .bars { display: grid; grid-template-columns: minmax(3em, auto) 1fr auto; gap: 3px 8px; align-items: center;
  font-size: 14px; min-height: 42px; align-content: start; }
.ndc .bars .name { text-align: right; }
.ndc .bars .track { display: block; }
.ndc .bars i { display: block; height: 14px; border-radius: 3px; min-width: 2px; background: var(--ndc-orange); }
.ndc .bars i.own { background: var(--ndc-blue); }
.ndc.copies { display: grid; grid-template-columns: 2fr 4.4fr; grid-template-rows: auto auto; gap: 6px 12px; }
.ndc.copies > div:first-child { grid-row: span 2; }
.ndc.copies > div:first-child img { width: 100%; }
.ndc.copies .row { display: grid; grid-template-columns: repeat(4, 1fr); gap: 2px 6px; }
.ndc.copies .row img { width: 100%; }
.ndc .said { font-size: 13px; grid-column: 1 / -1; display: block; }
.ndc.preview img { width: 132px; height: 132px; object-fit: contain; }
.ndc .save { display: inline-block; padding: 8px 16px; border-radius: 6px; background: #0072b2;
  color: white !important; text-decoration: none; }
.ndc .attempt { display: flex; align-items: center; gap: 10px; padding: 6px 0; border-top: 1px solid var(--ndc-grid);
  font-size: 14px; line-height: 1.45; }
.ndc .attempt img { width: 72px; height: 72px; object-fit: contain; flex: none; }
.ndc .verdict { display: inline-block; padding: 1px 9px; border-radius: 10px; color: white; font-weight: 600; }
.ndc .verdict.kept { background: #00664b; }
.ndc .verdict.abstained { background: #e69f00; color: black; }
.ndc .verdict.fallen { background: #b14a00; }
.ndc .changes { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px; }
.ndc .changes figure { margin: 0; text-align: center; font-size: 13px; }
.ndc .changes img, .ndc .changes .none { width: 100%; aspect-ratio: 1; object-fit: contain; }
.ndc .changes .none { display: grid; place-items: center; border: 1px dashed var(--ndc-grid); border-radius: 4px; }
.ndc .legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; }
details.why { font-size: 14px; margin: 2px 0 6px; color: var(--body-text-color); }
details.why summary { cursor: pointer; color: var(--body-text-color); text-decoration: underline dotted; }
details.why p { margin: 4px 0; max-width: 640px; }
iframe.runs { width: 100%; height: 82vh; min-height: 480px; border: 1px solid var(--ndc-grid); border-radius: 6px; }

/* On a phone the editor's left tool bar covers part of the canvas (undo and bin stay). */
#sketch .toolbar-wrap { display: none; }
#samples .grid-wrap { min-height: 0; overflow: visible; }
#samples .grid-container { grid-template-columns: repeat(auto-fill, minmax(44px, 1fr)) !important;
  grid-template-rows: none !important; grid-auto-rows: auto !important; gap: 6px; height: auto; }
#samples .grid-container button { width: 100%; min-width: 0; height: auto; aspect-ratio: 1; }
#table th { word-break: normal; }
.html-container { padding: 0 !important; }
:is(a, button, input, select, summary, [role="tab"], iframe):focus-visible {
  outline: 3px solid var(--ndc-vermilion) !important; outline-offset: 2px; }
@media (max-width: 640px) {
  .gradio-container { padding: 8px !important; }
  .ndc.preview img { width: 96px; height: 96px; }
  h1 { font-size: 22px !important; }
  #status h2 { font-size: 19px; margin: 2px 0; }
  #results { order: -1; }
  .gradio-container .gap { gap: 10px; }
}
"""

# The editor starts without a tool. This selects the brush as soon as it is there, so that visitors can draw at once.
TAKE_BRUSH = """() => {
    const take = (left) => {
        const brush = document.querySelector("#sketch button[aria-label='Brush']");
        if (brush) brush.click(); else if (left) setTimeout(take, 200, left - 1);
    };
    setTimeout(take, 300, 50);
}"""
