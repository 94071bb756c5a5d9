"""Files that nodes write are in the host's lists afterwards, without the key R."""

from steps import LIST_AGAIN, LOAD_AGAIN, RUN, each_renderer, panel

# Save Concept writes a file, and a Loader waits for it
SAVED_AND_LOADED = """async file => {
    app.graph.clear()
    const [from, save, loader] = ['PerfusionLoadConcept', 'PerfusionSaveConcept', 'PerfusionLoader'].map(type => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        return node
    })
    from.connect(0, save, save.inputs.findIndex(({ name }) => name === 'concept'))
    const set = (node, name, value) => node.widgets.find(widget => widget.name === name).value = value
    set(from, 'concept', 'my-teddy.safetensors')
    set(save, 'filename', file.replace('.safetensors', ''))
    set(loader, 'concept', file)
    loader.pos = [400, 100]
    await window.reload()
}"""
OF_LOADER = "app.graph.nodes.find(({ type }) => type === 'PerfusionLoader')"


@each_renderer
def test_a_saved_file_is_no_longer_missing(frontend, page, no_new_files, request):
    new = f"test/{request.node.name}.safetensors"  # another each time, or the host would not save again
    page.evaluate(LIST_AGAIN)  # without what an earlier test wrote
    page.evaluate(LOAD_AGAIN)
    page.evaluate(SAVED_AND_LOADED, new)
    page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 100]; app.canvas.setDirty(true, true) }")
    gone = panel(page).get_by_text("is not in models/perfusion.")
    gone.first.wait_for()
    page.wait_for_function(f"!app.refreshMissingModels || {OF_LOADER}.has_errors")  # a red frame in newer frontends
    assert page.evaluate(RUN) == ["execution_success", ""]
    listed = f"{OF_LOADER}.widgets.find(({{ name }}) => name === 'concept').options.values.includes('{new}')"
    page.wait_for_function(listed)
    page.wait_for_function(f"!{OF_LOADER}.has_errors")
    page.get_by_text(f"{new} is missing").wait_for(state="hidden")
    gone.first.wait_for(state="hidden")
