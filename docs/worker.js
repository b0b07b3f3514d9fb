// Search in pages that are opened from a folder: browsers start no web worker from a file, so the search runs in a frame.
// It has the names (IFrameWorker, importScripts) by which the theme's search recognises such a frame.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.ready = new Promise((resolve) => {
        frame.addEventListener("load", () => resolve(frame.contentWindow), { once: true });
      });
      window.answerOfSearch = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      frame.srcdoc = `<script>
        self.postMessage = (data) => parent.answerOfSearch(data);
        self.importScripts = async (...sources) => {
          for (const source of sources) {
            await new Promise((loaded, failed) => {
              const script = document.createElement("script");
              Object.assign(script, { src: source, onload: loaded, onerror: failed });
              document.head.append(script);
            });
          }
        };
      <\/script><script src="${url}"><\/script>`;
      document.body.append(frame);
    }
    postMessage(data) {
      this.ready.then((frame) => frame.dispatchEvent(new frame.MessageEvent("message", { data })));
    }
  };
}
