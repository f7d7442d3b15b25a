"""A web page that shows the prediction, heatmap, similar cases and anomaly map of a radiograph.

`models` loads SavedModels or connects to a server, `analysis` computes the results, `html` renders
them, and `page` builds the page with Gradio, which no other module needs.
"""
