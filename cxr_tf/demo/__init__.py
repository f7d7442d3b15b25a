"""A web page for one radiograph or a few: prediction, heatmap, similar cases, anomaly map.

`models` loads SavedModels or opens a server, `analysis` makes the results, `html` writes fragments
of the page, and `page` puts them together with Gradio, which nothing else here needs.
"""
