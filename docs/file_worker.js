// Browsers start no worker from a file. Where the site is opened from files, its search runs in a frame of the page instead.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.documentElement.append(this.frame);
      const inside = this.frame.contentWindow;
      // Neither side is to see what the other does to its data.
      inside.postMessage = (data) => this.onmessage && this.onmessage({ data: structuredClone(data) });
      this.loaded = new Promise((loaded, failed) => {
        const script = inside.document.createElement("script");
        script.src = url;
        script.onload = loaded;
        script.onerror = failed;
        inside.document.body.append(script);
      });
      this.loaded.catch((error) => this.onerror && this.onerror(error));
    }
    postMessage(data) {
      const inside = this.frame.contentWindow;
      const event = new inside.MessageEvent("message", { data: structuredClone(data) });
      this.loaded.then(() => inside.dispatchEvent(event)).catch(() => {});
    }
    terminate() {
      this.frame.remove();
    }
  };
}
