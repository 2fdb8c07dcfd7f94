"""A local web page: drop a picture, watch its inversion converge, edit it with sliders, mix it with another one.

jobs.py     one queue of inversions, with cancel
studio.py   what the page does, without the page: pictures to codes, codes to edited pictures
markup.py   pictures, numbers and curves as HTML
app.py      the page itself, with Gradio (the extra "ui")
guard.py    what requests are refused
server.py   the server, on 127.0.0.1 only
"""
