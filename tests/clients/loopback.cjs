// Preloaded into a Node server that would bind all interfaces: it listens on 127.0.0.1, and says where in PORT_FILE.
const fs = require("node:fs");
const net = require("node:net");

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
    if (typeof port !== "number" && !/^\d+$/.test(port)) return listen.call(this, port, ...rest);
    this.once("listening", () => {
        const written = `${process.env.PORT_FILE}.new`;
        fs.writeFileSync(written, `${this.address().port}\n`);
        fs.renameSync(written, process.env.PORT_FILE);
    });
    return listen.call(this, Number(port), "127.0.0.1", ...rest.filter((argument) => typeof argument === "function"));
};
